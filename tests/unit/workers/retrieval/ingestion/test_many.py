"""Thousands of files in one batch, and a vector server that is away for a minute of it."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from jobs import clock
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ledger import events
from jobs.ledger.states import JobState
from jobs.retrieval import attachments
from jobs.webhooks.tables import Event
from tests.support.ingestion import ReadOnce, Works, works
from workers.retrieval.ingestion import job
from workers.vectors.base import VectorsUnavailable
from workers.vectors.open_vectors import open_vectors

pytestmark = pytest.mark.timeout(300)  # where a machine does much else

SHARDS = 60
TEXTS = 10  # whatever the number of files: none is embedded twice
OUTAGE = 60.0


@pytest.fixture(params=[700, pytest.param(5_000, marks=pytest.mark.soak)])
def count(request: pytest.FixtureRequest) -> int:
    """So many files that to plan them, and to fail them, takes several transactions."""
    number: int = request.param
    return number


@pytest.fixture
def large(
    count: int, sqlite: Database, tmp_path: Path, parser: ReadOnce, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Works]:
    """Of more shards than one transaction cuts."""
    vectors = open_vectors("memory:", tmp_path)
    monkeypatch.setattr(job, "MAX_SHARD_FILES", count // SHARDS)
    with works(tmp_path, sqlite.url, vectors, parser) as inline:
        yield inline


def many(inline: Works, count: int) -> list[str]:
    """So many files, uploaded as fast as rows are written: their texts are a few files'."""
    uploaded = [inline.upload(f"Animal{n} lives in a place of its own.") for n in range(TEXTS)]
    with inline.db.write() as session:
        first = session.get_one(File, uploaded[0])
        facts = {name: getattr(first, name) for name in ("project_id", "purpose", "bytes", "created_at")}
        session.add_all(
            File(id=f"file-{n}", filename="a.txt", path=f"files/{uploaded[n % TEXTS]}", **facts) for n in range(count)
        )
    return [f"file-{n}" for n in range(count)]


def test_a_batch_of_many_files_comes_in_whole(large: Works, count: int) -> None:
    store, files = large.store(), many(large, count)

    batch = large.batch(store, *files)
    large.drive(limit=1000)

    job = large.job(batch)
    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, count, 0)
    assert Counter(large.statuses(store).values()) == {("completed", None): count}
    assert Counter(large.told(batch)) == Counter(
        [("vector_store.file.completed", file) for file in files]
        + [("job.running", batch), ("job.finishing", batch), ("vector_store.file_batch.completed", batch)]
    )
    assert large.engine.texts == TEXTS
    assert len({one.file_id for one in large.search(store, "animal7", limit=count // TEXTS)}) == count // TEXTS
    large.assert_tidy(store)


def test_many_files_that_cannot_come_in_each_fail_once(
    large: Works, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, files = large.store(), many(large, count)
    batch = large.batch(store, *files)
    (large.folder / "models.yaml").write_text("models: {}")
    written, record = [0], events.record

    def recorded(session: Session, **fields: Any) -> Event:
        written[-1] += 1
        return record(session, **fields)

    def committed(_: Session) -> None:
        written.append(0)

    monkeypatch.setattr(events, "record", recorded)
    event.listen(Session, "after_commit", committed)
    large.drive(limit=1000)
    event.remove(Session, "after_commit", committed)

    assert max(written) == attachments.STOPPED_AT_ONCE
    assert Counter(large.statuses(store).values()) == {("failed", "server_error"): count}
    assert Counter(large.told(batch)) == Counter(
        [("vector_store.file.failed", file) for file in files] + [("vector_store.file_batch.failed", batch)]
    )


class Clock:
    """Wall time that goes on when it is told to."""

    def __init__(self) -> None:
        self.at = clock.now()

    def __call__(self) -> float:
        return self.at


class Away:
    """A vector server that nothing reaches until a time."""

    def __init__(self, inner: Any, time: Clock) -> None:
        self.inner, self.time = inner, time
        self.until = 0.0
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        if self.time() < self.until:
            self.refused += 1
            raise VectorsUnavailable("refused")
        return getattr(self.inner, name)


@pytest.mark.parametrize("answered", [False, True], ids=["before it wrote", "before it answered"])
def test_vector_server_outage_only_delays_batch(inline: Works, monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    time = Clock()
    monkeypatch.setattr(clock, "_steady", time)
    store, files = inline.store(), many(inline, 20)
    away = inline.vectors.inner = Away(inline.vectors.inner, time)
    began, writes, seen = time.at, itertools.count(), set[int]()

    def goes() -> None:
        if next(writes) == 2:
            away.until = time.at + OUTAGE
            if answered:
                raise VectorsUnavailable("no answer")

    inline.vectors.before_write, inline.vectors.after_write = (bool, goes) if answered else (goes, bool)
    batch = inline.batch(store, *files)
    for _ in range(500):
        messages = inline.messages()
        if not messages:
            break
        message = min(messages, key=lambda one: (one.due_at, one.id))
        time.at = max(time.at, message.due_at)
        inline.handle(message)
        if away.until and time.at < away.until:
            rows = inline.rows(store)
            assert {row.status for row in rows} <= {"completed", "in_progress"}
            seen.add(sum(row.document is not None for row in rows))

    assert away.refused
    assert seen == {6}  # two shards of three files
    job = inline.job(batch)
    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, 20, 0)
    assert OUTAGE <= time.at - began < OUTAGE + 30
    assert Counter(inline.told(batch))["vector_store.file.completed", files[0]] == 1
    assert len(inline.told(batch)) == 20 + 3
    assert {one.file_id for one in inline.search(store, "animal7 place", limit=50)} == set(files)
    inline.purge()
    inline.assert_tidy(store)
