"""A job ends once, by the worker that ran its last shard or by another one, with its counts, files and event."""

import pytest

from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.files.tables import File
from jobs.ledger import ledger, pauses, shards
from jobs.ledger.shards import ShardClaim
from jobs.ledger.states import JobState
from jobs.queues import Queue, Task
from tests.support import sample_jobs
from tests.support.sample_jobs import (
    LosesAnswers,
    answer,
    at_once,
    claim_job,
    claim_shard,
    cuts,
    finishing,
    history,
    outbox_messages,
    planning,
    running,
    state,
    told,
)

pytestmark = pytest.mark.dialects


def _go_on(db: Database, claim: ShardClaim) -> ledger.JobClaim | None:
    with db.write() as session:
        job = shards.commit(session, claim, 0, "a", 1, sample_jobs.tally(range(4)), last=True)
        assert job is not None
        return ledger.claim_finish(session, job, "worker")


def test_worker_of_last_shard_claims_finish(db: Database) -> None:
    job = running(db)

    claim = _go_on(db, claim_shard(db, job.id))

    assert claim is not None
    after = sample_jobs.job(db, job.id)
    assert (after.state, after.worker_id, after.epoch) == (JobState.FINISHING, "worker", claim.epoch)
    assert outbox_messages(db, job.id) == []
    with db.write() as session:
        ledger.close(session, claim, {"completed": 4}, [])
    assert state(db, job.id) == JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("scope", "name"), [(pauses.Scope.QUEUE, Queue.PLAN), (pauses.Scope.WORKER, "worker"), (None, "")]
)
def test_finish_is_enqueued_if_worker_must_not_claim_it(db: Database, scope: pauses.Scope | None, name: str) -> None:
    job = running(db)
    claim = claim_shard(db, job.id)
    with db.write() as session:
        if scope is None:
            ledger.cancel(session, job.id, actor="key:test")
        else:
            pauses.pause(session, scope, name, actor="key:test")

    assert _go_on(db, claim) is None

    assert state(db, job.id) == (JobState.FINISHING if scope else JobState.CANCELLING)
    assert outbox_messages(db, job.id) == [(Task.FINISH, -1)]


def test_job_with_open_shard_is_not_finished(db: Database) -> None:
    job = running(db, [4, 4])

    assert _go_on(db, claim_shard(db, job.id, 0)) is None

    assert state(db, job.id) == JobState.RUNNING
    assert _go_on(db, claim_shard(db, job.id, 1)) is not None


def test_finished_job_has_counts_files_and_single_event(db: Database) -> None:
    job = finishing(db, [4, 4])
    claim = claim_job(db, job.id, Task.FINISH)
    output = File(
        id="file-1", project_id="proj_1", purpose="batch_output", filename="o", bytes=1, path="p", created_at=1.0
    )

    with db.write() as session:
        ledger.close(session, claim, {"completed": 8, "failed": 0, "output_file_id": "file-1"}, [output])

    after = sample_jobs.job(db, job.id)
    assert (after.state, after.completed, after.output_file_id) == ("succeeded", 8, "file-1")
    assert [kind for _, kind in told(db, job.id)] == ["job.created", "job.running", "job.finishing", "batch.completed"]
    with db.read() as session:
        assert session.get(File, "file-1") is not None


def test_a_finisher_that_lost_its_job_can_not_close_it(db: Database) -> None:
    job = finishing(db)
    first = claim_job(db, job.id, Task.FINISH, "first")
    with db.write() as session:
        ledger.revoke_lease(session, job.id, first.epoch, 0)
    second = claim_job(db, job.id, Task.FINISH, "second")
    orphan = File(id="file-z", project_id="p", purpose="batch_output", filename="o", bytes=1, path="p", created_at=1.0)

    with pytest.raises(ClaimLost), db.write() as session:
        ledger.close(session, first, {"completed": 99}, [orphan])
    with db.write() as session:
        ledger.close(session, second, {"completed": 4}, [])

    assert sample_jobs.job(db, job.id).completed == 4
    with db.read() as session:
        assert session.get(File, "file-z") is None


def test_repeated_close_after_lost_answer_is_fenced_and_first_stands(database_url: str) -> None:
    db = LosesAnswers(database_url)
    job = finishing(db)
    claim = claim_job(db, job.id, Task.FINISH)

    def closing(session) -> object:  # type: ignore[no-untyped-def]
        row = File(id="file-1", project_id="p", purpose="batch_output", filename="o", bytes=1, path="p", created_at=1.0)
        return ledger.close(session, claim, {"output_file_id": "file-1"}, [row])

    db.lose_next = True
    with pytest.raises(ClaimLost):
        db.retrying(closing)

    assert state(db, job.id) == JobState.SUCCEEDED
    assert [kind for _, kind in told(db, job.id)].count("batch.completed") == 1
    db.close()


def test_repeated_cut_after_lost_answer_creates_shards_once(database_url: str) -> None:
    db = LosesAnswers(database_url)
    claim = planning(db)

    db.lose_next = True
    db.retrying(lambda session: shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4, 4])))

    assert outbox_messages(db, claim.job.id) == [("run", 0), ("run", 1)]
    db.close()


def test_concurrent_close_of_last_shards_enqueues_single_finish(db: Database) -> None:
    for _ in range(8):
        job = running(db, [2, 2])
        claims = [claim_shard(db, job.id, n) for n in range(2)]

        results = at_once(2, lambda n, claims=claims: answer(db, claims[n], range(2), last=True))  # type: ignore[misc]

        assert results == [None, None]
        assert state(db, job.id) == JobState.FINISHING
        assert outbox_messages(db, job.id) == [("finish", -1)]
        assert [target for _, target in history(db, job.id)].count("finishing") == 1
