"""Measures count a thing once, in the transaction in which it happened."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.fleet import workers
from jobs.fleet.tables import Measure, Worker
from jobs.ledger import ledger, measures, shards
from jobs.queues import Task
from tests.support import sample_jobs
from tests.support.sample_jobs import at_once, claim_job, claim_shard, close, finishing, planning, rolled_back, running


def counted(db: Database, name: str, label: str | None = None) -> dict[str, int]:
    """By bound."""
    sums = Counter[str]()
    with db.read() as session:
        for row in measures.rows(session):
            if row.name == name and label in (None, row.label):
                sums[row.le] += row.count
    return dict(sums)


def observed(db: Database, *seconds: float) -> None:
    with db.write() as session:
        measures.observe_all(session, measures.ENGINE, "tiny", seconds)


@pytest.mark.parametrize(
    ("seconds", "le"),
    [(-5.0, "0.01"), (0.0, "0.01"), (0.01, "0.01"), (0.011, "0.025"), (86400.0, "86400.0"), (86401.0, "+Inf")],
)
def test_duration_is_counted_in_smallest_sufficient_bucket(db: Database, seconds: float, le: str) -> None:
    observed(db, seconds)

    assert counted(db, measures.ENGINE) == {le: 1}


def test_observations_of_later_transactions_accumulate(db: Database) -> None:
    observed(db, 0.02, 0.02, 3.0)
    observed(db, 0.02, 200.0)

    assert counted(db, measures.ENGINE, "tiny") == {"0.025": 3, "5.0": 1, "300.0": 1}
    with db.read() as session:
        assert sum(row.seconds for row in measures.rows(session)) == pytest.approx(203.06)


def added_up(db: Database) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Return the counts that are added up."""
    with db.read() as session:
        return {(row.name, row.label, row.le): (row.count, row.seconds) for row in session.scalars(select(Measure))}


def test_add_up_consolidates_committed_changes_once(db: Database) -> None:
    observed(db, 0.02, 3.0)
    with db.write() as session:
        measures.count(session, measures.RESTARTS, "gpu", 2)
    for n in range(3):
        observed(db, float(n))
    before = counted(db, measures.ENGINE)
    assert added_up(db) == {}

    with rolled_back(db) as session:
        assert measures.add_up(session) == 5
    assert (added_up(db), counted(db, measures.ENGINE)) == ({}, before)
    pages = at_once(3, lambda _: _add_up(db))

    assert added_up(db)[measures.RESTARTS, "gpu", measures.NO_BOUND] == (2, 0.0)
    assert sum(count for (name, _, _), (count, _) in added_up(db).items() if name == measures.ENGINE) == 5
    assert sum(seconds for _, seconds in added_up(db).values()) == pytest.approx(6.02)
    assert counted(db, measures.ENGINE) == before
    assert sum(map(int, map(str, pages))) == 5
    with db.read() as session:
        assert not measures.has_changes(session)
    observed(db, 0.02)
    assert counted(db, measures.ENGINE)["0.025"] == 2


def _add_up(db: Database) -> int:
    added = 0
    with db.write() as session:
        added = measures.add_up(session, 2)
    return added + (_add_up(db) if added else 0)


def test_a_transaction_that_counts_waits_for_no_other(postgres: Database) -> None:
    observed(postgres, 2.0)
    _add_up(postgres)

    with postgres.engine.connect() as held:
        held.exec_driver_sql("SELECT * FROM measure FOR UPDATE")
        observed(postgres, 2.0)  # would wait for the other transaction, which waits for this one

    assert counted(postgres, measures.ENGINE) == {"2.5": 2}


def test_rolled_back_observation_is_not_counted(db: Database) -> None:
    with rolled_back(db) as session:
        measures.observe(session, measures.ENGINE, "tiny", 1.0)
    observed(db, 2.0)

    assert counted(db, measures.ENGINE) == {"2.5": 1}


def test_a_job_waits_until_the_first_claim_on_its_lines_and_is_counted_once(db: Database) -> None:
    at = now()
    job = running(db, [1, 1], created_at=at - 7)
    claim = claim_shard(db, job.id, 0)
    claim_shard(db, job.id, 1)
    with db.write() as session:
        shards.release(session, claim)
    claim_shard(db, job.id, 0)

    assert counted(db, measures.WAIT, "generation") == {"10.0": 1}


def test_wait_of_scheduled_job_starts_at_its_not_before_time(db: Database) -> None:
    at = now()
    job = running(db, created_at=at - 5000, not_before=at - 20)

    claim_shard(db, job.id)

    assert counted(db, measures.WAIT) == {"30.0": 1}


def test_job_is_counted_only_after_its_end(db: Database) -> None:
    running(db)
    job = finishing(db, created_at=now() - 100)
    before = counted(db, measures.ENDED)
    close(db, job.id)

    assert before == {}
    assert counted(db, measures.ENDED, "generation") == {"300.0": 1}


def test_rejected_and_cancelled_jobs_are_counted_as_ended(db: Database) -> None:
    at = now()
    claim = planning(db, created_at=at - 2)
    with db.write() as session:
        ledger.reject(session, claim, [{"line": 1}])
    stopped = sample_jobs.submitted(db, created_at=at - 100)
    with db.write() as session:
        ledger.cancel(session, stopped.id, actor="key:test")
    close(db, stopped.id)

    assert counted(db, measures.ENDED) == {"2.5": 1, "300.0": 1}


def test_end_with_lost_acknowledgement_is_counted_once(db: Database) -> None:
    claim = claim_job(db, finishing(db).id, Task.FINISH)
    with db.write() as session:
        ledger.close(session, claim, {}, [])
    with pytest.raises(ClaimLost), db.write() as session:
        ledger.close(session, claim, {}, [])

    assert sum(counted(db, measures.ENDED).values()) == 1


def test_the_engines_time_for_lines_is_counted_with_their_segment_and_once(db: Database) -> None:
    job = running(db, [3], model="tiny")
    claim = claim_shard(db, job.id)
    tally = replace(sample_jobs.tally([0, 1, 2]), took=[0.2, 0.2, 40.0])
    for _ in range(2):  # the answer to the first was lost
        with db.write() as session:
            shards.commit(session, claim, 0, "p", 1, tally, last=True)

    assert counted(db, measures.ENGINE, "tiny") == {"0.25": 2, "60.0": 1}


def test_a_zombies_lines_are_not_counted(db: Database) -> None:
    job = running(db, [1])
    claim = claim_shard(db, job.id)
    with db.write() as session:
        shards.revoke_lease(session, job.id, 0, claim.epoch, 0)
    with pytest.raises(ClaimLost), db.write() as session:
        shards.commit(session, claim, 0, "p", 1, replace(sample_jobs.tally([0]), took=[1.0]), last=True)

    assert counted(db, measures.ENGINE) == {}


def worker(**changes: Any) -> Worker:
    where: dict[str, Any] = {"id": "gpu-1", "pool": "gpu", "host": "h", "pid": 1, "started": 1}
    what: dict[str, Any] = {"queues": [], "models": [], "slots": 1, "state": "ready"}
    return Worker(**where, **what, created_at=1.0, seen_at=1.0, **changes)


def test_restarts_of_engines_outlive_their_worker(db: Database) -> None:
    with db.write() as session:
        workers.register(session, worker(restarts=0))
    for restarts in (0, 2, 2, 3):
        with db.write() as session:
            assert workers.heartbeat(session, "gpu-1", restarts=restarts)
    with db.write() as session:
        workers.leave(session, "gpu-1")
    with db.write() as session:
        workers.register(session, worker(restarts=3))  # it was frozen, and taken for dead
        assert workers.heartbeat(session, "gpu-1", restarts=4)

    assert counted(db, measures.RESTARTS, "gpu") == {"+Inf": 4}
