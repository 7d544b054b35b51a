"""How far a live job is: by the shards that have ended, of which no segment is read, and by the others' segments."""

from collections.abc import Iterable

import pytest
from sqlalchemy import delete, null, update

from jobs.db.engine import Database
from jobs.ledger import progress, shards
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.tables import Job, Segment, Shard
from tests.support import sample_jobs
from tests.support.sample_jobs import claim_shard, running


def commit(
    db: Database, claim: ShardClaim, lines: Iterable[int], *words: str, seq: int = 0, last: bool = False
) -> None:
    bits = sum(1 << line for line in lines)
    tally = Tally(bits, bits, input_tokens=10, outcomes=dict.fromkeys(words, bits.bit_count()))
    with db.write() as session:
        shards.commit(session, claim, seq, "path", 9, tally, last=last)


def seen(db: Database, job_id: str) -> dict[str, int]:
    with db.read() as session:
        return progress.outcomes(session, session.get_one(Job, job_id))


@pytest.fixture
def job(db: Database) -> Job:
    """Return a job of four shards: ended after three segments of two attempts, running, tried once, new."""
    job = running(db, [6, 4, 4, 4])
    first = claim_shard(db, job.id, 0)
    commit(db, first, range(3), "stop")
    with db.write() as session:
        shards.release(session, first)
    again = claim_shard(db, job.id, 0)
    commit(db, again, [3], "error:engine_error")
    commit(db, again, [4, 5], "stop", "empty", seq=1, last=True)
    commit(db, claim_shard(db, job.id, 1), range(2), "length")
    waits = claim_shard(db, job.id, 2)
    commit(db, waits, [1], "stop")
    with db.write() as session:
        shards.release(session, waits)
    return job


WORDS = {"stop": 6, "error:engine_error": 1, "empty": 2, "length": 2}


def test_outcomes_are_those_of_all_segments(db: Database, job: Job) -> None:
    assert seen(db, job.id) == WORDS
    assert sample_jobs.shard(db, job.id, 0).outcomes == {"stop": 5, "error:engine_error": 1, "empty": 2}
    assert [sample_jobs.shard(db, job.id, n).outcomes for n in (1, 2, 3)] == [None] * 3


def test_segments_of_a_shard_that_has_ended_are_not_looked_at(db: Database, job: Job) -> None:
    with db.write() as session:
        session.execute(delete(Segment).where(Segment.n == 0))

    assert seen(db, job.id) == WORDS


def test_outcomes_of_shards_from_older_version_are_read_from_segments(db: Database, job: Job) -> None:
    with db.write() as session:
        session.execute(update(Shard).values(outcomes=null()))

    assert seen(db, job.id) == WORDS


def worked(db: Database, job_id: str) -> float | None:
    with db.read() as session:
        return progress.worked_seconds(session, session.get_one(Job, job_id))


def test_work_counts_from_the_claim_that_brought_results(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(db, [4, 4])
    clock = 100.0
    for module in ("jobs.ledger.shards", "jobs.ledger.progress"):
        monkeypatch.setattr(f"{module}.now", lambda: clock)
    assert worked(db, job.id) is None

    in_vain = claim_shard(db, job.id, 0)
    with db.write() as session:
        shards.release(session, in_vain, waiting_for="model")
    assert worked(db, job.id) is None, "its model was not there"

    clock = 200.0
    first = claim_shard(db, job.id, 0)
    clock = 205.0
    assert worked(db, job.id) == 5.0
    commit(db, first, [0], "stop")
    with db.write() as session:
        shards.release(session, first)

    clock = 300.0
    commit(db, claim_shard(db, job.id, 0), [1, 2, 3], "stop", last=True)
    commit(db, claim_shard(db, job.id, 1), range(4), "stop", last=True)
    with db.write() as session:
        session.get_one(Job, job.id).finalizing_at = 310.0

    clock = 400.0
    assert worked(db, job.id) == 110.0, "what was done before it was given back counts"


def test_worked_seconds_of_ingestion_are_unknown(db: Database) -> None:
    job = running(db, kind="ingestion")
    claim_shard(db, job.id, 0)

    assert worked(db, job.id) is None


def test_a_shard_that_ends_without_a_segment_has_the_sum_of_those_before(db: Database, job: Job) -> None:
    claim = claim_shard(db, job.id, 2)
    for _ in range(2):
        with db.write() as session:
            shards.finish_empty(session, claim)

    assert sample_jobs.shard(db, job.id, 2).outcomes == {"stop": 1}
    assert seen(db, job.id) == WORDS


def test_the_pace_is_that_of_all_segments_of_the_last_seconds(db: Database, job: Job) -> None:
    with db.write() as session:
        session.execute(update(Job).values(in_progress_at=Job.created_at))
        session.execute(update(Segment).where(Segment.n == 0, Segment.seq == 1).values(created_at=1.0))

    with db.read() as session:
        pace = progress.pace(session, session.get_one(Job, job.id))

    assert pace is not None
    assert pace.items_per_second == pytest.approx(7 / 30, rel=0.01)
    assert pace.tokens_per_second == pytest.approx(40 / 30, rel=0.01)
