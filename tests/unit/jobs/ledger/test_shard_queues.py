"""A shard is for the workers of one queue at a time, and is passed on to another queue."""

import pytest
from sqlalchemy import delete, select

from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.ledger import ledger, shards
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Outbox, Shard
from jobs.queues import Queue
from tests.support import sample_jobs
from tests.support.sample_jobs import LosesAnswers, answer, lose, outbox_messages, shard, state

pytestmark = pytest.mark.dialects


def staged(db: Database, lines: int = 4) -> sample_jobs.Job:
    """Create a job whose shard is first run in the ingest queue, and then in the embedding queue."""
    claim = sample_jobs.planning(db)
    [cut] = sample_jobs.cuts(claim.job.id, [lines])
    cut.queue = Queue.INGEST
    with db.write() as session:
        shards.cut(session, claim, Queue.INGEST, [cut])
        return ledger.begin_running(session, claim, total=lines, model="m", queue=Queue.EMBED)


def take(db: Database, job_id: str, queue: Queue | None = None) -> shards.ShardClaim | None:
    with db.write() as session:
        return shards.claim(session, job_id, 0, "worker", queue=queue)


def taken(db: Database, job_id: str, queue: Queue | None = None) -> shards.ShardClaim:
    claim = take(db, job_id, queue)
    assert claim is not None
    return claim


def requeue(db: Database, claim: shards.ShardClaim) -> None:
    with db.write() as session:
        shards.requeue_to_job_queue(session, claim)


def queues(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.scalars(select(Outbox.queue).order_by(Outbox.id)))


def test_shard_is_claimable_from_single_queue_at_a_time(db: Database) -> None:
    job = staged(db)

    early = take(db, job.id)
    first = taken(db, job.id, Queue.INGEST)
    requeue(db, first)
    late = take(db, job.id, Queue.INGEST)
    second = taken(db, job.id)

    assert (early, late) == (None, None)
    assert (first.queue, second.queue) == (Queue.INGEST, None)
    assert second.epoch == first.epoch + 2


def test_a_message_is_in_the_queue_that_is_to_hear_it(db: Database) -> None:
    job = staged(db)
    before = queues(db)
    claim = taken(db, job.id, Queue.INGEST)
    between = queues(db)

    requeue(db, claim)

    assert (before, between, queues(db)) == ([Queue.INGEST], [], [Queue.EMBED])


@pytest.mark.parametrize("heard", ["before", "after"])
def test_a_stale_message_of_the_other_queue_settles_none_but_itself(db: Database, heard: str) -> None:
    job = staged(db)
    if heard == "after":
        requeue(db, taken(db, job.id, Queue.INGEST))

    stale = take(db, job.id, Queue.INGEST if heard == "after" else None)

    assert stale is None
    assert queues(db) == [Queue.EMBED if heard == "after" else Queue.INGEST]
    assert shard(db, job.id).state == ShardState.PENDING


def test_covered_lines_survive_requeue_to_other_queue(db: Database) -> None:
    job = staged(db)
    first = taken(db, job.id, Queue.INGEST)
    answer(db, first, [1, 3], bad=[3])

    requeue(db, first)
    second = taken(db, job.id)
    answer(db, second, [0, 2], last=True)

    assert second.covered == 0b1010
    assert (shard(db, job.id).done, shard(db, job.id).failed) == (4, 1)
    assert state(db, job.id) == JobState.FINISHING


def test_passed_on_it_begins_without_stalls(db: Database) -> None:
    job = staged(db)
    for _ in range(2):
        taken(db, job.id, Queue.INGEST)
        lose(db, job.id)
    claim = taken(db, job.id, Queue.INGEST)
    with db.write() as session:
        shards.record_isolated_attempt(session, claim, 2)

    requeue(db, claim)

    row = shard(db, job.id)
    assert (claim.stalls, row.stalls, row.isolated_line, row.isolated_attempts) == (2, 0, None, 0)
    assert (row.state, row.worker_id, row.queue) == (ShardState.PENDING, None, None)


def test_passed_on_twice_it_is_passed_on_once(database_url: str) -> None:
    db = LosesAnswers(database_url)
    job = staged(db)
    claim = taken(db, job.id, Queue.INGEST)

    db.lose_next = True
    db.retrying(lambda session: shards.requeue_to_job_queue(session, claim))

    assert (shard(db, job.id).epoch, queues(db)) == (claim.epoch + 1, [Queue.EMBED])
    db.close()


def test_a_zombie_passes_nothing_on(db: Database) -> None:
    job = staged(db)
    zombie = taken(db, job.id, Queue.INGEST)
    lose(db, job.id)

    with pytest.raises(ClaimLost):
        requeue(db, zombie)
    heir = taken(db, job.id, Queue.INGEST)
    with pytest.raises(ClaimLost):
        requeue(db, zombie)

    assert (shard(db, job.id).queue, shard(db, job.id).epoch) == (Queue.INGEST, heir.epoch)
    with db.write() as session:
        session.execute(delete(Shard))
    with pytest.raises(ClaimLost):
        requeue(db, heir)


@pytest.mark.parametrize("how", ["lost", "given back"])
@pytest.mark.parametrize("stage", [Queue.INGEST, Queue.EMBED])
def test_a_shard_comes_back_to_the_queue_it_was_in(db: Database, stage: Queue, how: str) -> None:
    job = staged(db)
    claim = taken(db, job.id, Queue.INGEST)
    if stage == Queue.EMBED:
        requeue(db, claim)
        claim = taken(db, job.id)

    if how == "lost":
        lose(db, job.id)
    else:
        with db.write() as session:
            shards.release(session, claim)

    assert queues(db) == [stage]
    assert take(db, job.id, None if stage == Queue.EMBED else Queue.INGEST) is not None


@pytest.mark.parametrize("passed", [False, True])
def test_a_lost_message_is_mended_into_the_shards_own_queue(db: Database, passed: bool) -> None:
    job = staged(db)
    if passed:
        requeue(db, taken(db, job.id, Queue.INGEST))
    with db.write() as session:
        session.execute(delete(Outbox))

    with db.write() as session:
        assert shards.restore_messages(session) == 1

    assert queues(db) == [Queue.EMBED if passed else Queue.INGEST]


def test_of_a_stopping_job_nothing_is_passed_on(db: Database) -> None:
    job = staged(db)
    claim = taken(db, job.id, Queue.INGEST)
    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    requeue(db, claim)

    assert outbox_messages(db, job.id) == [("finish", -1)]
    assert take(db, job.id) is None
