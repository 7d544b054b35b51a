"""Clients with vector stores, beside the batches of a run: they add, replace and remove files, and search.

    writer    keeps some stores, adds papers singly and in batches, replaces some by another version, removes some
    watcher   looks how far the open ones are
    reader    searches, and knows what an answer may not show

Every request that makes something has a key of its own. Each paper is in one store.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import openai
from openai import OpenAI
from openai.types import VectorStoreSearchResponse as Found
from openai.types.vector_stores import VectorStoreFile

from tests.chaos.journal import Journal
from tests.support import store_oracle
from tests.support.store_oracle import LARGE, SMALL, Intake, KnownStore, Paper, make_paper
from tests.support.stub_engine import text_mark
from tests.support.system import pause, wait_for

if TYPE_CHECKING:
    from tests.chaos.load import Client

T = TypeVar("T")
_OPEN = 12  # papers that are being brought in, at most
_BY_WORDS = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
_WITH_CHUNK = {"include": ["chunk"]}


@dataclass(slots=True)
class StoreClients:
    """Files that the clients added, and their state as far as it was answered. `stores` are kept at once."""

    client: "Client"
    journal: Journal
    rng: random.Random
    stores: int
    moved: Callable[[], None]
    known_stores: list[KnownStore] = field(default_factory=list)
    intakes: list[Intake] = field(default_factory=list)
    queries: set[str] = field(default_factory=set)  # marks of what was searched for
    searches: int = 0
    busy: bool = False
    _papers: int = 0
    _due: list[tuple[float, Intake]] = field(default_factory=list)

    @property
    def papers(self) -> list[Paper]:
        return [paper for store in self.known_stores for paper in store.papers]

    @property
    def alive(self) -> list[KnownStore]:
        return [store for store in self.known_stores if not store.gone and store.id]

    @property
    def open(self) -> list[Paper]:
        return [paper for store in self.alive for paper in store.papers if not paper.settled]

    @property
    def open_intakes(self) -> list[Intake]:
        return [one for one in self.intakes if one.batch and not one.over]

    def await_settled(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.busy or self.open or self.open_intakes:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    # -- the writer

    def step(self, *, feeding: bool) -> None:
        """Let one client take one step. Raises OpenAIError."""
        self.busy = True
        try:
            for due in [due for due in self._due if due[0] <= time.monotonic() or not feeding]:
                self._due.remove(due)
                self._cancel(due[1])
            if feeding:
                self._work()
        finally:
            self.busy = False

    def _work(self) -> None:
        if len(self.alive) < self.stores:
            self._found()
        elif len(self.open) < _OPEN:
            chore = self.rng.choices(
                (self._one, self._many, self._again, self._take_out, self._close), (4, 5, 3, 3, 0.3)
            )
            chore[0](self.rng.choice(self.alive))

    def _found(self) -> None:
        store = KnownStore(f"store-{len(self.known_stores):03d}")
        self.known_stores.append(store)
        made = self.client.sdk.vector_stores.create(
            name=store.key, metadata={"key": store.key}, extra_headers={"Idempotency-Key": store.key}
        )
        store.id = made.id
        self.journal.note(f"{store.key} is {store.id}")

    def _one(self, store: KnownStore) -> None:
        self._attach(Intake(self._key(), store, [self._upload(store)], batch=False), SMALL)

    def _many(self, store: KnownStore) -> None:
        papers = [self._upload(store) for _ in range(self.rng.randint(2, 8))]
        intake = Intake(self._key(), store, papers, batch=True)
        self._attach(intake, SMALL)
        if self.rng.random() < 0.2:
            self._due.append((time.monotonic() + self.rng.uniform(0, 3), intake))

    def _again(self, store: KnownStore) -> None:
        """Attach another version of papers that are in a store, or on their way into it."""
        papers = [one for one in store.there if one.attached == 1 and not one.refused]
        papers = [one for one in papers if one.status == "completed" or self.rng.random() < 0.3]
        papers = self.rng.sample(papers, min(len(papers), self.rng.randint(1, 3)))
        if papers:
            batch = len(papers) > 1 or self.rng.random() < 0.3
            self._disturb(papers)
            self._attach(Intake(self._key(), store, papers, batch=batch), LARGE)

    def _take_out(self, store: KnownStore) -> None:
        """From its store, or the file itself."""
        papers = store.there
        if not papers:
            return
        paper = self.rng.choice(papers)
        self._disturb([paper])
        paper.gone = True
        if self.rng.random() < 0.5:
            self._delete(f"/vector_stores/{store.id}/files/{paper.file_id}")
        else:
            self._delete(f"/files/{paper.file_id}")
        paper.removed = True
        self.journal.note(f"{paper.key} was taken out")
        self.moved()

    def _close(self, store: KnownStore) -> None:
        store.gone = True
        self._delete(f"/vector_stores/{store.id}")
        store.removed = True
        self.journal.note(f"{store.key} was deleted")

    def _delete(self, path: str) -> None:
        """Delete an object, which is gone already if the first answer was cut off."""
        try:
            self.client.sdk.delete(path, cast_to=object)
        except openai.NotFoundError:
            self.journal.note(f"{path} was gone already")

    def _upload(self, store: KnownStore) -> Paper:
        paper = make_paper(self._papers, self.rng, refused=self.rng.random() < 0.12)
        self._papers += 1
        made = self.client.sdk.files.create(
            file=(paper.name, paper.content), purpose="assistants", extra_headers={"Idempotency-Key": paper.key}
        )
        paper.file_id = made.id
        return paper

    def _attach(self, intake: Intake, size: int) -> None:
        """Ask for it. From this moment on, and not from the answer, it may be seen."""
        store, names = intake.store, [paper.file_id for paper in intake.papers]
        for paper in intake.papers:
            paper.attached += 1
            paper.sizes = paper.sizes | {size}
            paper.status = ""
            paper.uncertain = False
        store.papers += [paper for paper in intake.papers if paper not in store.papers]
        self.intakes.append(intake)
        if intake.batch and self.rng.random() < 0.3:
            names.append(self.rng.choice(names))
        intake.id = self._ask(intake, names, size)
        for paper in intake.papers:
            paper.status = "in_progress"
        self.journal.note(f"{intake.key} is {intake.id}: {', '.join(one.key for one in intake.papers)} of {size}")
        self.moved()

    def _ask(self, intake: Intake, names: Sequence[str], size: int) -> str:
        key = {"Idempotency-Key": intake.key}
        options: Any = {
            "chunking_strategy": {
                "type": "static",
                "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0},
            }
        }
        stores = self.client.sdk.vector_stores
        if not intake.batch:
            [paper] = intake.papers
            facts: Any = {"attributes": {"paper": paper.key}, **options}
            return stores.files.create(intake.store.id, file_id=names[0], **facts, extra_headers=key).id
        keys = {paper.file_id: paper.key for paper in intake.papers}
        files: Any = [{"file_id": name, "attributes": {"paper": keys[name]}, **options} for name in names]
        return stores.file_batches.create(intake.store.id, files=files, extra_headers=key).id

    def _cancel(self, intake: Intake) -> None:
        if intake.store.gone:
            return
        intake.cancelled = True
        for paper in intake.papers:
            paper.uncertain = True
        try:
            self.client.sdk.vector_stores.file_batches.cancel(intake.id, vector_store_id=intake.store.id)
        except openai.ConflictError:
            return
        self.journal.note(f"{intake.key} is to be cancelled")

    def _disturb(self, papers: Sequence[Paper]) -> None:
        """Batches that were to bring these in may find that somebody else has changed them."""
        for intake in self.intakes:
            intake.disturbed |= any(paper in papers for paper in intake.papers)

    def _key(self) -> str:
        return f"intake-{len(self.intakes):04d}"

    # -- the watcher

    def watch(self) -> None:
        """Look once at everything that is open."""
        for store in self.alive:
            if any(not paper.settled for paper in store.papers):
                self._look(store)
        for intake in self.open_intakes:
            if intake.id:
                self._look_at(intake)

    def _look(self, store: KnownStore) -> None:
        asked = {paper.file_id: (paper, paper.attached, paper.status) for paper in store.papers}
        shown = self._of(store, lambda sdk: list(sdk.vector_stores.files.list(store.id, limit=100)))
        for file in shown or ():
            paper, attached, status = asked.get(file.id, (None, 0, ""))
            if paper is not None and status == "in_progress" and paper.attached == attached:
                self._saw(paper, file)

    def _saw(self, paper: Paper, file: VectorStoreFile) -> None:
        if file.status == "in_progress":
            return
        if file.status == "completed":
            paper.sizes = {max(paper.sizes)}
        paper.status = file.status
        self.journal.note(f"{paper.key} {file.status}")
        self.moved()

    def _look_at(self, intake: Intake) -> None:
        store = intake.store
        shown = self._of(
            store, lambda sdk: sdk.vector_stores.file_batches.retrieve(intake.id, vector_store_id=store.id)
        )
        if shown is None:
            return
        counts = shown.file_counts.model_dump()
        backwards = [name for name, number in intake.counts.items() if name != "in_progress" and counts[name] < number]
        if backwards:
            self.journal.violation(f"{intake.key}: went back from {intake.counts} to {counts}")
        if counts != intake.counts:
            self.moved()
        intake.counts, intake.status = counts, shown.status

    # -- the reader

    def read(self) -> None:
        """Search for a known paper: the answer shows all of one version, and nothing that was removed."""
        known_stores = [store for store in self.alive if store.papers]
        if not known_stores:
            return
        store = self.rng.choice(known_stores)
        paper = self.rng.choice(store.papers)
        removed = {one.file_id for one in store.papers if one.removed}
        before = (paper.attached, paper.status, paper.gone)
        sizes = set(paper.sizes)
        by_words = self.rng.random() < 0.5
        found = self.find(store, paper, by_words=by_words)
        if found is None:
            return
        self.searches += 1
        shown = [one.file_id for one in found]
        if removed & set(shown):
            self.journal.violation(f"{paper.key}: a search shows {sorted(removed & set(shown))}, which were taken out")
        if not by_words:
            self.journal.violation(*store_oracle.whole(paper, found, sizes | paper.sizes))
        steady = before == (paper.attached, "completed", False) and not paper.gone and not store.gone
        if steady and paper.file_id not in shown:
            self.journal.violation(f"{paper.key}: a search does not find it, though it is completed")

    def find_patiently(self, store: KnownStore, paper: Paper, *, by_words: bool) -> list[Found]:
        """Search until the paper is found. Raises TimeoutError."""
        answers: list[list[Found]] = []

        def asked() -> bool:
            found = self.find(store, paper, by_words=by_words)
            answers.extend([] if found is None else [found])
            return found is not None

        wait_for(asked, 60.0, f"somebody answers a search for {paper.key}")
        return answers[-1]

    def find(self, store: KnownStore, paper: Paper, *, by_words: bool) -> list[Found] | None:
        """By its own word among all; or every chunk of it alone. None when nobody answers."""
        if by_words:
            asked: Any = {"query": paper.needle, "extra_body": {"ranking_options": _BY_WORDS, **_WITH_CHUNK}}
        else:
            query = f"look for {paper.key} the {self.searches}th time"
            self.queries.add(text_mark(query))
            filters = {"type": "eq", "key": "paper", "value": paper.key}
            asked = {"query": query, "filters": filters, "extra_body": _WITH_CHUNK}
        return self._of(store, lambda sdk: list(sdk.vector_stores.search(store.id, max_num_results=50, **asked)), 15.0)

    def _of(self, store: KnownStore, get: Callable[[OpenAI], T], seconds: float = 5.0) -> T | None:
        """None also when it was deleted meanwhile."""
        try:
            return self.client.look(get, seconds)
        except openai.NotFoundError:
            if store.gone:
                return None
            raise
