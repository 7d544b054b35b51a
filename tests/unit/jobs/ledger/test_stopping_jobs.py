"""Jobs are cancelled and expire: once, whatever else happens to them at the same time."""

import pytest
from sqlalchemy import update

from jobs.db.engine import Database
from jobs.errors import ClaimLost, Conflict
from jobs.ledger import ledger, outbox, progress, shards
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue
from tests.support import sample_jobs
from tests.support.sample_jobs import (
    answer,
    at_once,
    claim_shard,
    finishing,
    history,
    outbox_messages,
    planning,
    running,
    state,
    submitted,
)

pytestmark = pytest.mark.dialects


def test_cancelling_a_queued_job_ends_it_without_a_run(db: Database) -> None:
    job = submitted(db)

    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    assert outbox_messages(db, job.id) == [("finish", -1)]
    assert sample_jobs.close(db, job.id).state == JobState.CANCELLED
    assert history(db, job.id)[1:] == [("queued", "cancelling"), ("cancelling", "cancelled")]


def test_cancelling_while_a_planner_works_fences_the_planner(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        ledger.cancel(session, claim.job.id, actor="key:test")

    with pytest.raises(ClaimLost), db.write() as session:
        ledger.begin_running(session, claim, total=1, model="tiny", queue=Queue.GENERATE)
    assert state(db, claim.job.id) == JobState.CANCELLING


def test_cancelling_twice_happens_once(db: Database) -> None:
    job = running(db)

    for _ in range(2):
        with db.write() as session:
            assert ledger.cancel(session, job.id, actor="key:test").state == JobState.CANCELLING
    sample_jobs.close(db, job.id)
    with db.write() as session:
        assert ledger.cancel(session, job.id, actor="key:test").state == JobState.CANCELLED

    assert [target for _, target in history(db, job.id)] == ["queued", "running", "cancelling", "cancelled"]


def test_a_job_that_ends_by_itself_can_no_longer_be_cancelled(db: Database) -> None:
    job = finishing(db)

    with pytest.raises(Conflict, match="finishing"), db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")
    sample_jobs.close(db, job.id)
    with pytest.raises(Conflict, match="succeeded"), db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")


def test_cancelling_forgets_the_messages_of_the_shards(db: Database) -> None:
    job = running(db, [4, 4])

    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    assert outbox_messages(db, job.id) == [("finish", -1)]


def test_a_cancel_sees_the_job_as_it_is_and_not_as_its_session_read_it_before(db: Database) -> None:
    job = submitted(db)
    with db.write() as session:
        session.get_one(Job, job.id)
        session.execute(
            update(Job).where(Job.id == job.id).values(state="succeeded"),
            execution_options={"synchronize_session": False},
        )

        with pytest.raises(Conflict):
            ledger.cancel(session, job.id, actor="key:test")


def test_concurrent_cancel_and_last_commit_yield_single_finish_message(db: Database) -> None:
    for _ in range(10):
        job = running(db)
        claim = claim_shard(db, job.id)

        def act(number: int, job: Job = job, claim: shards.ShardClaim = claim) -> object:
            if number:
                return answer(db, claim, range(4), last=True)
            with db.write() as session:
                return ledger.cancel(session, job.id, actor="key:test")

        at_once(2, act)

        assert state(db, job.id) in {JobState.CANCELLING, JobState.FINISHING}
        assert outbox_messages(db, job.id) == [("finish", -1)]
        assert sample_jobs.shard(db, job.id).done == 4


def test_of_a_cancel_and_a_claim_on_a_shard_the_cancel_always_wins_in_the_end(db: Database) -> None:
    for _ in range(10):
        job = running(db)

        def act(number: int, job: Job = job) -> object:
            with db.write() as session:
                if number:
                    return shards.claim(session, job.id, 0, "worker")
                return ledger.cancel(session, job.id, actor="key:test")

        claim = at_once(2, act)[1]
        if claim is not None:
            assert outbox_messages(db, job.id) == []  # it is enqueued when the shard comes back
            with db.write() as session:
                shards.revoke_running(session, job.id)

        assert outbox_messages(db, job.id) == [("finish", -1)]
        assert sample_jobs.close(db, job.id).state == JobState.CANCELLED


def test_concurrent_cancels_take_effect_once(db: Database) -> None:
    job = running(db)

    def cancel(_: int) -> object:
        with db.write() as session:
            return ledger.cancel(session, job.id, actor="key:test").state

    assert at_once(6, cancel) == [JobState.CANCELLING] * 6
    assert [target for _, target in history(db, job.id)] == ["queued", "running", "cancelling"]


def test_job_expires_only_after_its_deadline(db: Database) -> None:
    late, early = submitted(db, deadline=10.0), submitted(db)

    with db.write() as session:
        assert ledger.overdue(session, 11.0) == [late.id]
        assert ledger.expire(session, early.id, actor="dispatcher") is None
        assert ledger.expire(session, "nobody", actor="dispatcher") is None
        expired = ledger.expire(session, late.id, actor="dispatcher")

    assert expired is not None
    assert expired.state == JobState.EXPIRING
    assert sample_jobs.close(db, late.id).state == JobState.EXPIRED


def test_job_without_deadline_never_expires_and_is_ordered_last(db: Database) -> None:
    endless, late = submitted(db, deadline=None, window=""), submitted(db)

    with db.write() as session:
        assert ledger.overdue(session, sample_jobs.FAR) == [late.id]
        assert ledger.expire(session, endless.id, actor="dispatcher") is None
        due = outbox.due(session, Queue.PLAN, "proj_1", sample_jobs.FAR / 2, 10)
        places = [progress.queue_position(session, session.get_one(Job, job.id)) for job in (late, endless)]

    assert [message.job_id for message in due] == [late.id, endless.id]
    assert places == [0, 1]


def test_a_job_that_ends_already_does_not_expire(db: Database) -> None:
    job = finishing(db, deadline=10.0)

    with db.write() as session:
        assert ledger.expire(session, job.id, actor="dispatcher") is None
        assert ledger.overdue(session, 11.0) == []
