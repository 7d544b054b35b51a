"""The client with a folder that a vector store follows: it changes files, has them synced, and switches indexes.

    writer   one step after the other: it alone begins syncs, so it knows what each must have read
    reader   searches all the while, and knows what an answer must show and may not

What a sync that ended well began with holds from then on (`tests.support.source_oracle`). A sync that fails is a
violation, unless an index was removed under it, or what it could not read was gone from the folder.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
from openai.types import VectorStoreSearchResponse as Found

from tests.chaos.journal import Journal
from tests.support import source_oracle
from tests.support.fake_engine import DIMENSIONS
from tests.support.source_oracle import Mirror, Version
from tests.support.store_oracle import KINDS, LARGE, SMALL, new_stem, written
from tests.support.stub_engine import text_mark
from tests.support.system import pause, wait_for

if TYPE_CHECKING:
    from tests.chaos.load import Client

_NAMES = tuple(
    f"{folder}doc-{n}.{kind}" for n in range(3) for folder, kind in zip(("", "a/", "a/b/", "c/"), KINDS, strict=True)
)
_MOST, _LEAST = 8, 2  # documents at once
SHOWN = 50  # chunks of a search, at most
_BY_WORDS = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
_WITH_CHUNK = {"include": ["chunk"]}


@dataclass(slots=True)
class _Sync:
    """A running sync, and the folder's content when it began."""

    id: str
    here: Sequence[Version] = field(repr=False)
    gone: Sequence[Version] = field(repr=False)
    changes: int
    dropped: bool = False  # an index was removed meanwhile


@dataclass(slots=True)
class SourceClient:
    """A client of one folder. `settled`: the store and all indexes have its present content."""

    client: "Client"
    journal: Journal
    rng: random.Random
    folder: Path
    moved: Callable[[], None]
    mirror: Mirror = field(init=False)
    syncs: list[str] = field(default_factory=list)  # ids of the jobs
    queries: set[str] = field(default_factory=set)  # marks of what was searched for
    dimensions: int = DIMENSIONS  # of the index built last
    searches: int = 0
    synced: int = 0
    switches: int = 0
    busy: bool = False
    _sync: _Sync | None = None
    _changes: int = 0
    _known: int = -1  # how many changes the last sync that ended well had seen
    _building: bool = False

    def __post_init__(self) -> None:
        self.mirror = Mirror("mirror", self.folder)

    @property
    def settled(self) -> bool:
        return not self.busy and self._is_done()

    def _is_done(self) -> bool:
        if self._building or self._sync is not None:
            return False
        return not self.mirror.id or self._known == self._changes

    def await_settled(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.settled:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    def state(self) -> str:
        """For the one who waits in vain."""
        return f"sync {self._sync}, {self._changes} changes of which {self._known} are in, building {self._building}"

    # ── the writer ──

    def step(self, *, feeding: bool) -> None:
        """Take one step. Raises OpenAIError."""
        self.busy = True
        try:
            if not self.mirror.source:
                if feeding:
                    self._found()
            elif feeding:
                self._work()
            elif not self._is_done():
                self._settle()
        finally:
            self.busy = False

    def _found(self) -> None:
        """Create a store and a source in it, which is synced at once. A repeated create with its key returns both."""
        if not self._changes:
            self._change(4)
        key, sdk = {"Idempotency-Key": self.mirror.key}, self.client.sdk
        store = sdk.vector_stores.create(name=self.mirror.key, chunking_strategy=_cut(SMALL), extra_headers=key)
        self.mirror.id = store.id
        here, gone = self.mirror.begun()
        body = {"type": "folder", "path": str(self.folder)}
        made = self._post("/sources", body, key)
        self._begun(made, here, gone)
        self.mirror.source = str(made["id"])
        self.journal.note(f"{self.mirror.key} is {store.id}, its source {self.mirror.source}")

    def _work(self) -> None:
        if self._sync is None:
            chores = (self._change, self._begin, self._tend)
            self.rng.choices(chores, (4, 1 if self._known == self._changes else 4, 4))[0]()
        else:
            chores = (self._follow, self._change, self._tend)
            self.rng.choices(chores, (12, 1, 3))[0]()

    def _settle(self) -> None:
        if self._building:
            self._look_at_indexes()
        elif self._sync is None:
            self._begin()
        else:
            self._follow()

    def _change(self, times: int = 0) -> None:
        """Rewrite, replace or remove some documents; or touch them, which is no change."""
        for _ in range(times or self.rng.randint(1, 3)):
            here = self.mirror.here
            name = self.rng.choice(_NAMES)
            if name not in here and len(here) < _MOST:
                self._write(name)
            elif here:
                name = self.rng.choice(list(here))
                what = self.rng.choices((self._write, self._remove, self._touch), (3, 2, 1))[0]
                what(name)

    def _write(self, name: str) -> None:
        """Write a document. The old version counts as gone from before the write, the new one as present after it."""
        words, stem = self.rng.randint(30, 45), new_stem(self.rng)
        made = Version(name, stem, words, written(name.rpartition(".")[2], stem, words, self.rng))
        self._forget(name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")
        beside.write_bytes(made.content)
        self.mirror.versions.append(made)  # a search may show it before we know that it is there
        beside.replace(path)
        self._changes += 1
        self.journal.note(f"{self.mirror.key}: {made} was written")

    def _remove(self, name: str) -> None:
        if len(self.mirror.here) > _LEAST:
            self._forget(name)
            (self.folder / name).unlink()
            self._changes += 1
            self.journal.note(f"{self.mirror.key}: {name} was removed")

    def _touch(self, name: str) -> None:
        os.utime(self.folder / name)

    def _forget(self, name: str) -> None:
        if before := self.mirror.here.get(name):
            before.due, before.gone = False, True

    def _begin(self) -> None:
        """Start a sync while none is in progress: it sees every change of the folder that came before."""
        (here, gone), changes = self.mirror.begun(), self._changes
        made = self._post(f"/sources/{self.mirror.source}/sync", {})
        self._begun(made, here, gone, changes)

    def _begun(self, made: Any, here: Sequence[Version], gone: Sequence[Version], changes: int | None = None) -> None:
        job = str(made["file_batch_id"])
        if job in self.syncs:
            self.journal.violation(f"{self.mirror.key}: {job} is the sync that was over")
        self._sync = _Sync(job, here, gone, self._changes if changes is None else changes)
        self.syncs.append(job)
        self.journal.note(f"{self.mirror.key}: sync {job} of {', '.join(map(str, here))}")
        self.moved()

    def _follow(self) -> None:
        sync = self._sync
        assert sync is not None
        now = self._get(f"/sources/{self.mirror.source}")
        if now is None or now["status"] == "in_progress":
            return
        if now["file_batch_id"] != sync.id:
            self.journal.violation(f"{self.mirror.key}: {now['file_batch_id']} syncs, not {sync.id}")
        if now["status"] == "completed" and not now["counts"]["failed"]:
            self._conclude(sync, now)
            return
        items = self._get(f"/sources/{self.mirror.source}/items?limit=100")
        if items is None:
            return
        told = f"{self.mirror.key}: sync {sync.id} is {now['status']}: {now['last_error']}, {now['counts']}"
        if source_oracle.excused(now["last_error"], items["data"], sync.here, dropped=sync.dropped):
            self.journal.note(told)
        else:
            self.journal.violation(told)
        self._sync = None

    def _conclude(self, sync: _Sync, now: Any) -> None:
        """Record the end of a successful sync. After a switch of the index, wait for what is pending in the new one."""
        files = self._files()
        if files is None or "in_progress" in files.values():
            return
        quiet = sync.changes == self._changes
        if quiet and not self._is_as_listed(sync, now, files):
            return
        self.mirror.ended_well(sync.here, sync.gone)
        self._known, self._sync, self._building = sync.changes, None, True  # its other indexes go on, for all we know
        self.synced += 1
        self.journal.note(f"{self.mirror.key}: sync {sync.id} ended with {now['counts']}")
        self.moved()

    def _is_as_listed(self, sync: _Sync, now: Any, files: dict[str, str]) -> bool:
        """Return whether the store lists what the source has; False when there is no answer."""
        items = self._get(f"/sources/{self.mirror.source}/items?limit=100")
        if items is None:
            return False
        self.journal.violation(*source_oracle.listed(self.mirror, items["data"], files))
        same = sync.changes == self._known
        self.journal.violation(*source_oracle.counted(self.mirror, now["counts"], len(sync.here), same=same))
        return True

    # ── its indexes ──

    def _tend(self) -> None:
        """Build one, switch to it, or remove the one before."""
        others = self._look_at_indexes()
        if others is None:
            return
        if not others:
            self._build()
        elif self.rng.random() < 0.75:
            self._switch(str(others[0]["id"]))
        else:
            self._drop(str(others[0]["id"]))

    def _look_at_indexes(self) -> list[Any] | None:
        """Return the indexes that are not in use; None without an answer."""
        page = self._get("/indexes")
        if page is None:
            return None
        self._building = any(one["file_counts"]["in_progress"] for one in page["data"])
        self.journal.violation(*(why for one in page["data"] for why in source_oracle.standing(self.mirror, one)))
        return [one for one in page["data"] if one["status"] != "active"]

    def _build(self) -> None:
        """Build an index of another length, so that what is embedded for it was not embedded before."""
        self.dimensions += 1
        body = {"embedding_dimensions": self.dimensions, "chunking_strategy": _cut(self.rng.choice((SMALL, LARGE)))}
        made = self._post("/indexes", body, {"Idempotency-Key": f"index-{self.dimensions:03d}"})
        self._building = True
        self.journal.note(f"{self.mirror.key}: {made['id']} is built: {body}")
        self.moved()

    def _switch(self, index: str) -> None:
        try:
            self._post(f"/indexes/{index}/switch", {})
        except openai.ConflictError as error:
            self.journal.note(f"{self.mirror.key}: {error.message}")
            return
        self.switches, self._building = self.switches + 1, True
        self.journal.note(f"{self.mirror.key}: {index} is in use")
        self.moved()

    def _drop(self, index: str) -> None:
        if self._sync is not None:
            self._sync.dropped = True
        try:
            self.client.sdk.delete(f"/vector_stores/{self.mirror.id}/indexes/{index}", cast_to=object)
        except openai.NotFoundError:
            self.journal.note(f"{index} was gone already")
        self.journal.note(f"{self.mirror.key}: {index} was removed")
        self.moved()

    # ── the reader ──

    def read(self) -> None:
        """Search so that the whole store is shown."""
        mirror = self.mirror
        if not mirror.source:
            return
        due, removed = mirror.due, set(mirror.removed)
        found = self.find()
        if found is None:
            return
        self.searches += 1
        steady = [one for one in due if one.due]
        self.journal.violation(*source_oracle.shown(mirror, found, steady, removed, cut=len(found) >= SHOWN))

    def find(self, words: str = "") -> list[Found] | None:
        """Everything, or where one word is. None when nobody answers."""
        if words:
            asked: Any = {"query": words, "extra_body": {"ranking_options": _BY_WORDS, **_WITH_CHUNK}}
        else:
            query = f"look at {self.mirror.key} the {self.searches}th time {self.rng.getrandbits(32):x}"
            asked = {"query": query, "extra_body": _WITH_CHUNK}
            lengths = (None, *range(DIMENSIONS, self.dimensions + 1))
            self.queries |= {text_mark(query, length) for length in lengths}
        return self.client.look(
            lambda sdk: list(sdk.vector_stores.search(self.mirror.id, max_num_results=SHOWN, **asked)), 15.0
        )

    def find_patiently(self, words: str = "") -> list[Found]:
        """Search until the words are found. Raises TimeoutError."""
        answers: list[list[Found]] = []

        def asked() -> bool:
            found = self.find(words)
            answers.extend([] if found is None else [found])
            return found is not None

        wait_for(asked, 60.0, f"somebody answers a search in {self.mirror.key}")
        return answers[-1]

    # ── requests ──

    def _files(self) -> dict[str, str] | None:
        shown = self.client.look(lambda sdk: list(sdk.vector_stores.files.list(self.mirror.id, limit=100)))
        return None if shown is None else {file.id: file.status for file in shown}

    def _get(self, path: str) -> Any:
        return self.client.look(lambda sdk: sdk.get(f"/vector_stores/{self.mirror.id}{path}", cast_to=object))

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        return self.client.sdk.post(
            f"/vector_stores/{self.mirror.id}{path}", cast_to=object, body=body, options={"headers": headers or {}}
        )


def _cut(size: int) -> Any:
    return {"type": "static", "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0}}
