"""The sums over ended jobs are those of the jobs themselves, before and after each is counted, and it counts once."""

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from jobs.db.engine import Database
from jobs.ledger import audit, ledger, totals
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Audit, AuditHead, Job, Outcome
from jobs.queues import Task
from tests.support import sample_jobs
from tests.support.query_plans import explained
from tests.support.sample_jobs import at_once, claim_job, claim_shard, finishing, planning, rolled_back, submitted

NAMES = (totals.JOBS, totals.ITEMS, totals.TOKENS, totals.OUTCOMES, totals.LOST_LEASES)
Sums = dict[str, Counter[tuple[str, str]]]


def sums(db: Database) -> Sums:
    with db.snapshot() as session:
        return {name: totals.sums_of(session, name) for name in NAMES}


def sums_of_rows(db: Database) -> Sums:
    """Return what the rows of the ended jobs add up to."""
    rows: Sums = {name: Counter() for name in NAMES}
    with db.read() as session:
        for job in session.scalars(select(Job).where(Job.state.in_(TERMINAL))):
            model = job.model or ""
            rows["jobs"][job.kind, job.state] += 1
            rows["lost_leases"]["", ""] += job.lost_leases
            rows["items"].update({(model, "completed"): job.completed, (model, "failed"): job.failed})
            for name in ("input", "cached", "output", "reasoning"):
                rows["tokens"][model, name] += getattr(job, f"{name}_tokens")
            for name, count in session.execute(select(Outcome.name, Outcome.count).where(Outcome.job_id == job.id)):
                rows["outcomes"][model, name] += count
    return rows


def ended(db: Database, *, outcomes: dict[str, int] | None = None, **changes: Any) -> Job:
    job = finishing(db, (4, 2), **changes)
    claim = claim_job(db, job.id, Task.FINISH)
    with db.write() as session:
        return ledger.close(session, claim, ledger.sums(session, job.id), [], outcomes or {})


def several(db: Database) -> None:
    """Leave jobs in several terminal states, and live ones."""
    ended(db, outcomes={"stop": 5, "error:engine_error": 1})
    ended(db, kind="embedding", model="other")
    sample_jobs.running(db)
    rejected = planning(db)
    with db.write() as session:
        ledger.reject(session, rejected, [{"code": "invalid_json"}])
    losing = sample_jobs.running(db)
    claim_shard(db, losing.id)
    assert sample_jobs.lose(db, losing.id)
    with db.write() as session:
        ledger.cancel(session, losing.id, actor="key:test")
    sample_jobs.close(db, losing.id)
    submitted(db)


def seal(db: Database) -> None:
    with db.write() as session:
        audit.seal(session)


def count(db: Database, limit: int = 200) -> int:
    with db.write() as session:
        return totals.count(session, limit)


def counted(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(AuditHead.counted)) or 0


def test_sums_match_rows_at_every_stage_of_counting(db: Database) -> None:
    several(db)
    rows = sums_of_rows(db)
    assert sums(db) == rows, "nothing is sealed"
    seal(db)

    pages = 0
    while count(db, limit=3):
        pages += 1
        assert sums(db) == rows
    ended(db)
    assert pages > 3
    assert sums(db) == sums_of_rows(db) != rows
    with db.read() as session:
        assert not totals.has_uncounted(session)


def test_rolled_back_count_is_repeated(db: Database) -> None:
    several(db)
    seal(db)
    rows = sums(db)

    with rolled_back(db) as session:
        totals.count(session)

    assert (counted(db), sums(db)) == (0, rows)
    assert count(db) > 0
    assert sums(db) == rows
    assert count(db) == 0


def test_processes_that_count_at_once_count_each_job_once(db: Database) -> None:
    several(db)
    seal(db)

    at_once(4, lambda _: count(db))

    assert sums(db) == sums_of_rows(db)


def test_sums_survive_removal_of_jobs(db: Database) -> None:
    several(db)
    seal(db)
    while count(db):
        pass
    rows = sums(db)

    with db.write() as session:
        session.execute(delete(Outcome))
        session.execute(delete(Job).where(Job.state.in_(TERMINAL)))

    assert sums(db) == rows


def test_rows_that_another_version_sealed_are_counted_later(db: Database) -> None:
    several(db)
    seal(db)
    with db.write() as session:
        session.execute(update(AuditHead).values(counted=None))

    assert sums(db) == sums_of_rows(db)
    while count(db):
        pass
    assert sums(db) == sums_of_rows(db)


@pytest.mark.parametrize("name", NAMES)
def test_the_sums_read_no_job_that_is_counted(sqlite: Database, name: str) -> None:
    """The plan finds the rows that are not counted by the two indexes of seals, and their jobs by their ids."""
    with explained(sqlite) as plans, sqlite.read() as session:
        totals.sums_of(session, name)

    scans = [step for step in plans if step.startswith("SCAN ") and "SUBQUERY" not in step]
    assert plans
    assert not scans, plans


def test_snapshot_transaction_sees_single_state(db: Database) -> None:
    job = finishing(db)

    with db.snapshot() as session:
        before = session.scalar(select(func.count()).select_from(Audit))
        sample_jobs.close(db, job.id)
        assert session.scalar(select(func.count()).select_from(Audit)) == before
    with db.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(Audit)) != before
