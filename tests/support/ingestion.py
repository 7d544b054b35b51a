"""Everything between a file and a search, in this process: the real API, planner, parser, indexer, finisher and purge.

    api ──▶ messages in SQL ──drive──▶ plan ─▶ parse ─▶ index ─▶ finish          purge, search: when they are called

The engine is the fake one, with vectors that know words: texts that share words are near each other. A process can be
made to die at the n-th call of what it works with (`Reaper`); `handle_worker_death` then does what maintenance does.
"""

import base64
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.fleet.models_file import Models
from jobs.fleet.tables import Worker
from jobs.inference.interactive import QueuedRequest
from jobs.ledger import ledger, shards
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.retrieval import documents, indexes, searches
from jobs.retrieval.attachments import version_of
from jobs.retrieval.documents import Document
from jobs.retrieval.searches import FoundChunk, Search
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.webhooks.tables import Event
from tests.support.fake_engine import FakeEngine
from tests.support.web import make_key, running_app
from workers.engines.port import Answer, Request, Usage, refusal
from workers.lifecycle import finish, plan, run, run_shard
from workers.retrieval.ingestion.purge import purge
from workers.retrieval.parsing.parser import Cutting, FileRefused, Parser
from workers.retrieval.reranking import Reranking
from workers.retrieval.search import Searching
from workers.runtime.context import Context, LazyVectors, WorkerStatus
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import Heartbeat
from workers.vectors.base import Store, Vector, VectorEntry, Vectors

MODEL = "all-minilm-l6-v2"
DIMENSIONS = 64
SMALL = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
T = TypeVar("T")
Fault = Callable[[list[str]], BaseException | Answer | None]


class Killed(BaseException):
    """End the process at this point."""


class Reaper:
    """Kills at the `at`-th time that something is done, counted from 1; by default never."""

    def __init__(self) -> None:
        self.at = self.calls = 0
        self.armed = False

    def arm(self, at: int) -> None:
        self.at, self.calls, self.armed = at, 0, True

    def tick(self) -> None:
        if not self.armed:
            return
        self.calls += 1
        if self.calls == self.at:
            self.armed = False
            raise Killed

    def around(self, call: Callable[[], T]) -> T:
        """Killed before, or after."""
        self.tick()
        done = call()
        self.tick()
        return done


class MortalDatabase(Database):
    """Dies around its transactions, or loses the answer to each that has none but its commit's."""

    loses_answers = False

    def __init__(self, url: str, reaper: Reaper) -> None:
        super().__init__(url, patience=10)
        self.reaper = reaper

    def retrying(self, work: Callable[[Session], T], stop: threading.Event | None = None) -> T:
        done = self.reaper.around(lambda: super(MortalDatabase, self).retrying(work, stop))
        return super().retrying(work, stop) if self.loses_answers and done is None else done

    def breathe(self, stop: threading.Event | None = None) -> None:
        """Go on at once: nobody else wants to write here."""


class MortalStorage(DiskStorage):
    """Dies around its writes; `before_put` hears of each."""

    def __init__(self, root: Path, reaper: Reaper) -> None:
        super().__init__(root)
        self.reaper = reaper
        self.before_put: Callable[[str], object] = str

    def put(self, path: str, data: bytes) -> None:
        self.before_put(path)
        self.reaper.around(lambda: super(MortalStorage, self).put(path, data))


class Watched:
    """Vectors that die around their writes; `before_write` and `after_write` hear of each."""

    def __init__(self, inner: Vectors, reaper: Reaper) -> None:
        self.inner = inner
        self.reaper = reaper
        self.before_write: Callable[[], object] = bool
        self.after_write: Callable[[], object] = bool

    def write(self, store: Store, entries: Sequence[VectorEntry]) -> None:
        self.before_write()
        self.reaper.around(lambda: self.inner.write(store, entries))
        self.after_write()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Given(LazyVectors):
    """The vector database is there already."""

    def __init__(self, vectors: Any) -> None:
        super().__init__()
        self.vectors: Vectors = vectors

    def get(self, config: Settings) -> Vectors:
        return self.vectors


@dataclass
class Wordy:
    """Vectors from words; `asked` are the texts of each request, `fault` may break it."""

    reaper: Reaper
    dimensions: int = DIMENSIONS
    fault: Fault | None = None
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, request: Request) -> BaseException | Answer | None:
        if request.url == "/v1/rerank":
            return None
        texts = list(request.body["input"])
        self.reaper.tick()
        self.asked.append(texts)
        told = self.fault(texts) if self.fault else None
        return told or self.answer(texts, request.body.get("dimensions") or self.dimensions)

    def answer(self, texts: list[str], dimensions: int) -> Answer:
        rows = [base64.b64encode(vector_of(text, dimensions).tobytes()).decode() for text in texts]
        data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
        return Answer(200, msgspec.json.encode({"data": data}), Usage(sum(len(text) for text in texts)))

    @property
    def texts(self) -> int:
        return sum(map(len, self.asked))


def vector_of(text: str, dimensions: int = DIMENSIONS) -> Vector:
    found = np.zeros(dimensions, "<f4")
    for word in re.findall(r"\w+", text.casefold()):
        found[zlib.crc32(word.encode()) % dimensions] += 1
    return (found / max(1.0, float(np.linalg.norm(found)))).astype(np.float32)


class ReadOnce:
    """A parser that reads each content once: a refusal ends its child, and another takes a second to start."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self.read: dict[tuple[bytes, str, Cutting], Document | FileRefused] = {}

    def parse(self, source: Path, filename: str, cutting: Cutting) -> Document:
        key = sha256(source.read_bytes()).digest(), filename, cutting
        if key not in self.read:
            self.read[key] = self._parse(source, filename, cutting)
        found = self.read[key]
        if isinstance(found, FileRefused):
            raise FileRefused(found.code, found.message)
        return found

    def _parse(self, source: Path, filename: str, cutting: Cutting) -> Document | FileRefused:
        try:
            return self.parser.parse(source, filename, cutting)
        except FileRefused as refused:
            return refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parser, name)


@dataclass
class Works:
    """Hold a deployment."""

    folder: Path
    db: MortalDatabase
    api: TestClient
    stranger: TestClient
    context: Context
    host: EngineHost
    engine: Wordy
    reaper: Reaper
    parser: Parser | ReadOnce
    storage: MortalStorage
    vectors: Watched
    searching: Searching

    # ── what a client does ──

    def upload(self, text: str | bytes, name: str = "a.txt") -> str:
        data = text.encode() if isinstance(text, str) else text
        return str(self.ok("/files", files={"file": (name, data)}, data={"purpose": "assistants"})["id"])

    def store(self, **fields: Any) -> str:
        return str(
            self.ok("/vector_stores", json={"embedding_model": MODEL, "chunking_strategy": SMALL, **fields})["id"]
        )

    def batch(self, store: str, *files: str, **fields: Any) -> str:
        return str(self.ok(f"/vector_stores/{store}/file_batches", json={"file_ids": list(files), **fields})["id"])

    def attach(self, store: str, file: str, **fields: Any) -> str:
        """Attach a file, and return the job's id, which the API does not show."""
        self.ok(f"/vector_stores/{store}/files", json={"file_id": file, **fields})
        return self.row(self.current(store).id, file).job_id

    def ok(self, path: str, **request: Any) -> dict[str, Any]:
        answer = self.api.post(f"/v1{path}", **request)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.get(f"/v1{path}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def delete(self, path: str) -> None:
        assert self.api.delete(f"/v1{path}").status_code == 200

    def search(self, store: str, *queries: str, **fields: Any) -> list[FoundChunk]:
        """In the index in use, as the API asks."""
        index = self.current(store)
        answer = self.ask(Search(model=index.model, store_id=index.id, queries=queries, **fields))
        assert answer.status == 200, answer.body
        return list(searches.decode_results(answer.body).chunks)

    def ask(self, search: Search, tenant: str = "", key_id: str = "") -> Answer:
        with self.db.read() as session:
            row = session.get(VectorStore, search.store_id)
        tenant = tenant or (row.project_id if row else "nobody")
        body = searches.encode(search)
        queued = QueuedRequest("req_1", searches.URL, body, tenant, deadline=4e9, stream=False, key_id=key_id)
        return self.host.call(self.searching.answer(queued, 0)).result(30)

    @contextmanager
    def as_stranger(self) -> Iterator[None]:
        """Send the requests of the block as another project."""
        self.api, self.stranger = self.stranger, self.api
        yield
        self.api, self.stranger = self.stranger, self.api

    # ── what workers do ──

    def drive(self, *, until: str = "", limit: int = 60) -> None:
        """Handle messages, whatever their delay, until none is pending or the step `until` is next."""
        for _ in range(limit):
            messages = self.messages()
            if not messages or step_of(messages[0]) == until:
                return
            self.handle(messages[0])
        raise AssertionError(
            f"after {limit} messages there are still {[step_of(message) for message in self.messages()]}"
        )

    def handle(self, message: Outbox) -> None:
        step = step_of(message)
        if step == "parse":
            run_shard(self.context, Queue.INGEST, (self.parser,), message.job_id, message.shard_n)
        elif step == "index":
            run(self.context, self.host, message.job_id, message.shard_n)
        else:
            (plan if step == "plan" else finish)(self.context, message.job_id)

    def messages(self) -> Sequence[Outbox]:
        with self.db.read() as session:
            return session.scalars(select(Outbox).order_by(Outbox.id)).all()

    def handle_worker_death(self) -> None:
        """Revoke what a dead worker held."""
        with self.db.write() as session:
            for job_id, n, epoch, heartbeat, _ in shards.running(session):
                shards.revoke_lease(session, job_id, n, epoch, heartbeat)
            for job_id, epoch, heartbeat, _ in ledger.current_claims(session):
                ledger.revoke_lease(session, job_id, epoch, heartbeat)

    def purge(self) -> None:
        """Remove what is pending, also what waits because it could not be removed."""
        with self.db.write() as session:
            session.execute(update(VectorRemoval).values(due_at=0))
        purge(self.context)
        assert not self.removals()

    # ── what is there ──

    def current(self, store: str) -> VectorStore:
        """Return the store's index in use."""
        with self.db.read() as session:
            return indexes.current(session, session.get_one(VectorStore, store))

    def row(self, store: str, file: str) -> VectorStoreFile:
        with self.db.read() as session:
            return session.get_one(VectorStoreFile, (store, file))

    def rows(self, store: str) -> Sequence[VectorStoreFile]:
        with self.db.read() as session:
            return session.scalars(select(VectorStoreFile).where(VectorStoreFile.store_id == store)).all()

    def statuses(self, store: str) -> dict[str, tuple[str, str | None]]:
        return {row.id: (row.status, row.error_code) for row in self.rows(store)}

    def job(self, job_id: str) -> Job:
        with self.db.read() as session:
            return session.get_one(Job, job_id)

    def shards(self, job_id: str) -> Sequence[Shard]:
        with self.db.read() as session:
            return session.scalars(select(Shard).where(Shard.job_id == job_id).order_by(Shard.n)).all()

    def removals(self) -> list[str]:
        with self.db.read() as session:
            return list(session.scalars(select(VectorRemoval.what).order_by(VectorRemoval.id)))

    def told(self, job_id: str) -> list[tuple[str, str]]:
        """Return the events of a job except its first: their type and their subject."""
        with self.db.read() as session:
            rows = session.scalars(select(Event).where(Event.subject_id == job_id).order_by(Event.seq)).all()
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return [(row.type, row.data["id"]) for row in rows[1:]]

    def written(self, store: str) -> dict[str, int]:
        """Entries by key, seen or not."""
        with self.db.read() as session:
            row = session.get(VectorStore, store)
        dimensions = row.dimensions if row and row.dimensions else DIMENSIONS
        project, model = (row.project_id, row.model) if row else ("", MODEL)
        return self.vectors.inner.counts(Store(store, project, model, dimensions))

    def assert_tidy(self, store: str) -> None:
        """Vectors and documents are those that can be found, each once, and nothing else."""
        rows = self.rows(store)
        published = {str(row.document): row.entries for row in rows if row.document}
        assert self.written(store) == published
        names = {documents.path(store, version_of(key)) for key in published}
        assert set(self.storage.list(documents.folder(store))) == names


def step_of(message: Outbox) -> str:
    if message.task == Task.RUN:
        return "parse" if message.queue == Queue.INGEST else "index"
    return str(message.task)


def refuses(word: str, answer: Answer | BaseException | None = None) -> Fault:
    """Make an engine that refuses requests with a certain word."""
    told = answer or refusal(400, "I will not embed this.")
    return lambda texts: told if any(word in text for text in texts) else None


@contextmanager
def works(
    folder: Path, url: str, vectors: Vectors, parser: Parser | ReadOnce, timings: Timings | None = None, **settings: Any
) -> Iterator[Works]:
    """Yield a deployment over a migrated database."""
    given = {"min_free_bytes": 0, **settings}
    reaper = Reaper()
    db, storage = MortalDatabase(url, reaper), MortalStorage(folder / "files", reaper)
    watched = Watched(vectors, reaper)
    wordy = Wordy(reaper)
    host = EngineHost(FakeEngine(("*",), fault=wordy), lambda: None)
    host.start()
    heartbeat = Heartbeat(db, _worker, heartbeat_seconds=60, stop=threading.Event())
    config = Settings(data_dir=folder, database_url=url, **given)
    parts = config, db, storage, "w", threading.Event(), WorkerStatus(), heartbeat, Models(config), Given(watched)
    context = Context(*parts, timings or Timings())
    with running_app(folder, url, **given) as app:
        api, stranger = _client(app), _client(app, "another")
        searching = Searching(context, host, Reranking(context, host, Queue.EMBED))
        yield Works(folder, db, api, stranger, context, host, wordy, reaper, parser, storage, watched, searching)
    host.close()
    searching.close()
    context.usage.close()
    db.close()


def _client(app: FastAPI, project: str = "default") -> TestClient:
    headers = {"Authorization": f"Bearer {make_key(app, project)}"}
    return TestClient(app, raise_server_exceptions=False, headers=headers)


def _worker() -> Worker:
    return Worker(id="w", models=[], state="ready", restarts=0, slots=1)
