"""The look inside passes one file of two chunks, visible and whole, and finds each harm done to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, update

from jobs.clock import now
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.retrieval import attachments
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from tests.chaos.inside import Inside
from tests.support import sample_jobs
from tests.support.databases import fresh
from workers.vectors.base import Store, VectorEntry
from workers.vectors.in_memory import MemoryVectors

pytestmark = pytest.mark.verify

_STORE = Store("vs_1", "default", "stub", 2)


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Inside]:
    with fresh("sqlite", tmp_path) as db:
        made = Inside(db, DiskStorage(tmp_path / "files"), MemoryVectors())
        with db.write() as session:
            session.add_all((_store(), _row()))
        made.storage.put("documents/vs_1/vsd_1.json", b"{}")
        _write(made, "vsd_1.3", 0)
        _write(made, "vsd_1.3", 1)
        yield made


def _store() -> VectorStore:
    facts = {"model": "stub", "dimensions": 2, "chunking": {}, "created_at": now(), "active_at": now()}
    return VectorStore(id="vs_1", project_id="default", name="", **facts)


def _row() -> VectorStoreFile:
    facts = {"filename": "a.txt", "created_at": now(), "chunking": {}, "job_id": "ing_1", "line": 0, "version": "vsd_1"}
    return VectorStoreFile(
        store_id="vs_1", id="file-1", project_id="default", status="completed", document="vsd_1.3", entries=2, **facts
    )


def _write(found: Inside, document: str, n: int, store: Store = _STORE) -> None:
    found.vectors.write(store, [VectorEntry(document, n, "text", "digest", np.array([1, 0], np.float32))])


def _enqueue_removals(found: Inside) -> None:
    with found.db.write() as session:
        attachments.enqueue_removal(session, session.get_one(VectorStore, "vs_1"), attachments.LEFTOVERS)


def _unfinished(found: Inside) -> None:
    with found.db.write() as session:
        session.execute(update(VectorStoreFile).values(status="in_progress"))


def _without_store(found: Inside) -> None:
    with found.db.write() as session:
        session.execute(delete(VectorStore))


def test_vectors_that_agree_with_sql_pass(found: Inside) -> None:
    assert found.violations() == []
    assert found.pending() == 0


def test_pending_removals_are_counted(found: Inside) -> None:
    _enqueue_removals(found)

    assert found.pending() == 1


@pytest.mark.parametrize(
    ("harm", "violation"),
    [
        (lambda found: found.vectors.drop(_STORE, ["vsd_1.3"]), "has 0 entries of vsd_1.3, SQL 2"),
        (lambda found: _write(found, "vsd_1.2", 0), "has 1 entries of vsd_1.2, SQL 0"),
        (lambda found: _write(found, "vsd_1.3", 3), "has entries [0, 1, 3]"),
        (lambda found: _write(found, "vsd_9.1", 0, Store("vs_9", "default", "stub", 2)), "vectors of vs_9"),
        (lambda found: found.storage.delete("documents/vs_1/vsd_1.json"), "vsd_1.json is not there"),
        (lambda found: found.storage.put("documents/vs_1/vsd_2.json", b"{}"), "no file points to it"),
        (_unfinished, "is in_progress"),
        (_without_store, "which is gone"),
    ],
)
def test_vectors_that_differ_from_sql_are_reported(
    found: Inside, harm: Callable[[Inside], object], violation: str
) -> None:
    harm(found)

    assert violation in "; ".join(found.violations())


def test_job_started_before_its_dependency_completed_is_reported(found: Inside) -> None:
    first = sample_jobs.finishing(found.db, [1]).id
    second = sample_jobs.submitted(found.db, after=[first]).id
    assert found.violations() == []
    with found.db.write() as session:
        session.execute(update(Job).where(Job.id == second).values(waiting_for=None))
    claim = sample_jobs.claim_job(found.db, second, Task.PLAN)
    with found.db.write() as session:
        ledger.begin_running(session, claim, total=0, model="stub", queue=Queue.GENERATE)

    early = [f"{second} began before {first} had completed"]
    assert found.violations() == early
    sample_jobs.close(found.db, first)
    assert found.violations() == early
