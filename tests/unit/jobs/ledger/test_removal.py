"""Jobs that ended long ago are removed with what the ledger has of them, and none that anything needs."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from jobs.db.engine import Database
from jobs.finetuning.tables import FinetuneEvent
from jobs.inference import cache
from jobs.inference.cache import NewEntry
from jobs.inference.tables import StoredResponse
from jobs.ledger import audit, ledger, removal, totals
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, JobDependency, Outcome, Segment, Shard
from jobs.queues import Task
from jobs.retrieval.tables import VectorStoreFile
from jobs.webhooks.tables import Event
from tests.support import sample_jobs
from tests.support.sample_jobs import claim_job, finishing, submitted

LATER = 4_000_000_000.0


def emptied(db: Database, **changes: Any) -> str:
    """Return the id of an ended job of which retention has left the row, its outcomes and its audit rows."""
    job = finishing(db, **changes)
    claim = claim_job(db, job.id, Task.FINISH)
    with db.write() as session:
        ledger.close(session, claim, ledger.sums(session, job.id), [], {"stop": 4})
    with db.write() as session:
        session.execute(delete(Shard).where(Shard.job_id == job.id))
        session.execute(delete(Segment).where(Segment.job_id == job.id))
        session.execute(delete(Event).where(Event.subject_id == job.id))
    return job.id


def count_all(db: Database) -> None:
    with db.write() as session:
        audit.seal(session)
        totals.count(session)


def remove(db: Database, *job_ids: str, before: float = LATER) -> int:
    with db.write() as session:
        return removal.remove(session, job_ids, before)


def test_a_job_goes_with_its_outcomes_and_its_predecessors_and_stays_in_the_totals(db: Database) -> None:
    first = emptied(db)
    job_id = emptied(db, after=[first])
    count_all(db)

    assert remove(db, job_id, "unknown") == 1

    with db.read() as session:
        assert session.scalars(select(Job.id)).all() == [first]
        assert session.scalars(select(Outcome.job_id)).all() == [first]
        assert session.scalar(select(func.count()).select_from(JobDependency)) == 0
        assert totals.sums_of(session, totals.JOBS) == {("generation", "succeeded"): 2}
        assert totals.sums_of(session, totals.OUTCOMES) == {("tiny", "stop"): 8}


def test_a_job_that_ended_later_or_lives_stays(db: Database) -> None:
    young, live = emptied(db), sample_jobs.running(db).id
    count_all(db)
    with db.write() as session:
        session.execute(update(Job).where(Job.id == young).values(completed_at=LATER))

    assert remove(db, young, live) == 0


def test_job_with_uncounted_end_is_not_removed(db: Database) -> None:
    job_id = emptied(db)

    assert remove(db, job_id) == 0
    with db.write() as session:
        audit.seal(session)
    assert remove(db, job_id) == 0
    count_all(db)
    assert remove(db, job_id) == 1


def _shard(db: Database, job_id: str) -> None:
    with db.write() as session:
        session.add_all(sample_jobs.cuts(job_id, [1]))


def _event(db: Database, job_id: str) -> None:
    facts: dict[str, Any] = {"type": "batch.completed", "data": {}, "project_id": "proj_1", "created_at": 1.0}
    with db.write() as session:
        session.add(Event(subject_id=job_id, seq=9, id="evt_9", **facts))


def _cached(db: Database, job_id: str) -> None:
    with db.write() as session:
        cache.put(session, [NewEntry(bytes(32), "proj_1", 0, b"{}", 1, 1.0, LATER, job_id)])


def _dependent(db: Database, job_id: str) -> None:
    submitted(db, after=[job_id, submitted(db).id])


def _child(db: Database, job_id: str) -> None:
    submitted(db, parent_id=job_id)


@pytest.mark.parametrize("need", [_shard, _event, _cached, _dependent, _child])
def test_a_job_of_which_something_is_needed_stays(db: Database, need: Callable[[Database, str], None]) -> None:
    job_id = emptied(db)
    count_all(db)
    need(db, job_id)

    assert remove(db, job_id) == 0


def test_a_child_goes_after_its_parent(db: Database) -> None:
    parent = emptied(db)
    child = emptied(db, parent_id=parent)
    count_all(db)

    assert remove(db, child) == 0
    assert remove(db, parent) == 1
    assert remove(db, child) == 1


def _response(job_id: str) -> StoredResponse:
    return StoredResponse(id=job_id, project_id="proj_1", created_at=1.0, expires_at=LATER)


def _attached(job_id: str) -> VectorStoreFile:
    facts: dict[str, Any] = {"filename": "f", "status": "completed", "created_at": 1.0, "chunking": {}, "version": "v"}
    return VectorStoreFile(store_id="vs", id="file-1", project_id="proj_1", job_id=job_id, line=0, **facts)


def _trained(job_id: str) -> FinetuneEvent:
    return FinetuneEvent(id="ftevent-1", job_id=job_id, level="info", message="m", type="message", created_at=1.0)


@pytest.mark.parametrize(("kind", "row"), [("response", _response), ("ingestion", _attached), ("finetuning", _trained)])
def test_a_job_that_a_row_of_its_room_names_stays(db: Database, kind: str, row: Callable[[str], object]) -> None:
    named, other = emptied(db), emptied(db)
    count_all(db)
    with db.write() as session:
        session.execute(update(Job).values(kind=kind))
        session.add(row(named))

    assert remove(db, named, other) == 1
    with db.read() as session:
        assert session.scalars(select(Job.id)).all() == [named]


def test_a_cancelled_job_that_never_ran_goes(db: Database) -> None:
    job_id = submitted(db).id
    with db.write() as session:
        ledger.cancel(session, job_id, actor="key:test")
    sample_jobs.close(db, job_id)
    assert sample_jobs.state(db, job_id) == JobState.CANCELLED
    count_all(db)
    with db.write() as session:
        session.execute(delete(Event))

    assert remove(db, job_id) == 1
