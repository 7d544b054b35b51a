"""The ledger: claims, cancellation and expiry, the next step that is always pending, and answers that get lost."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, func, select, text, update

from jobs.db.engine import Database
from jobs.errors import ClaimLost, Conflict
from jobs.files.tables import File
from jobs.ledger import ledger, outbox, pauses, progress, shards, statements
from jobs.ledger.shards import ShardClaim
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Audit, Job, Outbox
from jobs.queues import Queue, Task
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint
from tests.support import ledgers
from tests.support.ledgers import (
    LosesAnswers,
    answer,
    claim_job,
    claim_shard,
    cuts,
    finishing,
    history,
    outbox_messages,
    planning,
    running,
    state,
    submitted,
    told,
)

pytestmark = pytest.mark.dialects


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Run `work` on so many threads that start together; what each returned or raised."""
    start = threading.Barrier(count)

    def one(number: int) -> object:
        start.wait()
        try:
            return work(number)
        except (ClaimLost, Conflict) as refusal:
            return refusal

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# ── submit ──


def test_a_submitted_job_has_its_event_its_audit_row_and_its_message(db: Database) -> None:
    job = submitted(db)

    assert state(db, job.id) == JobState.QUEUED
    assert told(db, job.id) == [(1, "job.created")]
    assert history(db, job.id) == [(None, "queued")]
    assert outbox_messages(db, job.id) == [("plan", -1)]


def test_a_submit_that_is_rolled_back_leaves_nothing(db: Database) -> None:
    with ledgers.rolled_back(db) as session:
        ledger.submit(session, ledgers.new_job(), actor="key:test")

    with db.read() as session:
        assert ledgers.everything(session) == ((),) * 6


# ── claims on a job ──


def test_of_many_claims_on_a_job_one_is_granted(db: Database) -> None:
    job = submitted(db)

    def claim(number: int) -> object:
        with db.write() as session:
            return ledger.claim(session, job.id, Task.PLAN, f"worker-{number}")

    granted = [claim for claim in at_once(8, claim) if claim is not None]

    assert len(granted) == 1
    assert outbox_messages(db, job.id) == []


@pytest.mark.parametrize("task", [Task.PLAN, Task.FINISH])
def test_a_claim_is_refused_in_every_state_that_is_not_for_it(sqlite: Database, task: Task) -> None:
    wrong = [state for state in JobState if state not in statements.CLAIMABLE[task]]
    jobs = [submitted(sqlite, id=f"job-{state}") for state in wrong]
    with sqlite.write() as session:
        for job, where in zip(jobs, wrong, strict=True):
            session.execute(update(Job).where(Job.id == job.id).values(state=where))

    with sqlite.write() as session:
        assert [ledger.claim(session, job.id, task, "worker") for job in jobs] == [None] * len(jobs)


def test_a_claim_on_a_job_that_does_not_exist_is_refused(db: Database) -> None:
    with db.write() as session:
        assert ledger.claim(session, "nobody", Task.PLAN, "worker") is None


def test_a_job_that_waited_for_something_no_longer_does_once_claimed(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        ledger.release(session, claim.job.id, claim.epoch, waiting_for="disk")

    claim_job(db, claim.job.id, Task.PLAN)

    assert ledgers.job(db, claim.job.id).waiting_for is None


def test_finishing_waits_for_the_running_shards_of_a_stopping_job(db: Database) -> None:
    job = running(db)
    shard_claim = claim_shard(db, job.id)
    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    with db.write() as session:
        early = ledger.claim(session, job.id, Task.FINISH, "finisher")
    with db.write() as session:
        shards.release(session, shard_claim)

    assert early is None
    assert outbox_messages(db, job.id) == [("finish", -1)]
    assert claim_job(db, job.id, Task.FINISH).job.state == JobState.CANCELLING


def test_a_heartbeat_counts_for_the_holder_alone(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        assert ledger.heartbeat(session, claim.job.id, claim.epoch, claim.worker_id)
        assert not ledger.heartbeat(session, claim.job.id, claim.epoch - 1, claim.worker_id)
        assert not ledger.heartbeat(session, claim.job.id, claim.epoch, "someone else")

    assert ledgers.job(db, claim.job.id).heartbeat == 1


# ── planning ──


def test_a_planned_job_runs_and_its_shards_are_enqueued(db: Database) -> None:
    job = running(db, [4, 4, 2])

    after = ledgers.job(db, job.id)
    assert (after.state, after.total, after.model, after.queue) == ("running", 10, "tiny", Queue.GENERATE)
    assert after.in_progress_at is not None
    assert after.worker_id is None
    assert outbox_messages(db, job.id) == [("run", 0), ("run", 1), ("run", 2)]


def test_a_job_planned_without_a_shard_goes_on_to_finish(db: Database) -> None:
    job = running(db, [])

    assert state(db, job.id) == JobState.FINISHING
    assert outbox_messages(db, job.id) == [("finish", -1)]


def test_a_planner_that_lost_its_job_can_write_nothing(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        assert ledger.revoke_lease(session, claim.job.id, claim.epoch, 0)
        before = ledgers.everything(session)

    zombie: list[Callable[[], object]] = [
        lambda: shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4])),
        lambda: shards.uncut(session, claim, 10),
        lambda: ledger.set_retry_input(session, claim, "elsewhere"),
        lambda: ledger.planned(session, claim, total=4, model="tiny", queue=Queue.GENERATE),
        lambda: ledger.reject(session, claim, [{"code": "invalid"}]),
    ]
    for write in zombie:
        with pytest.raises(ClaimLost), db.write() as session:
            write()

    with db.read() as session:
        assert ledgers.everything(session) == before


def test_a_second_planner_clears_what_the_first_has_cut(db: Database) -> None:
    first = planning(db)
    with db.write() as session:
        shards.cut(session, first, Queue.GENERATE, cuts(first.job.id, [4, 4, 4]))
    with db.write() as session:
        ledger.revoke_lease(session, first.job.id, first.epoch, first.job.heartbeat + 1)

    second = claim_job(db, first.job.id, Task.PLAN, "second")
    with db.write() as session:
        removed = [shards.uncut(session, second, 2), shards.uncut(session, second, 2), shards.uncut(session, second, 2)]
        shards.cut(session, second, Queue.EMBED, cuts(second.job.id, [6, 6]))

    assert removed == [2, 1, 0]
    assert outbox_messages(db, first.job.id) == [("run", 0), ("run", 1)]
    assert ledgers.shard(db, first.job.id, 1).lines == 6


def test_the_messages_of_a_job_that_is_being_planned_give_nobody_a_shard(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4]))

    with db.write() as session:
        early = shards.claim(session, claim.job.id, 0, "worker")

    assert early is None
    assert outbox_messages(db, claim.job.id) == [("run", 0)]


def test_a_rejected_job_keeps_its_errors_and_has_no_message(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4]))

    with db.write() as session:
        ledger.reject(session, claim, [{"line": 2, "code": "invalid_json"}])

    after = ledgers.job(db, claim.job.id)
    assert (after.state, after.errors) == ("failed", [{"line": 2, "code": "invalid_json"}])
    assert outbox_messages(db, claim.job.id) == []


def test_a_retry_reads_what_its_planner_says(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        ledger.set_retry_input(session, claim, "jobs/1/input.jsonl")

    assert ledgers.job(db, claim.job.id).input_path == "jobs/1/input.jsonl"


# ── a claim that ends without a result ──


def test_a_released_job_is_enqueued_again_after_its_delay(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        first = ledger.release(session, claim.job.id, claim.epoch, delay=60, waiting_for="model")
        again = ledger.release(session, claim.job.id, claim.epoch)

    after = ledgers.job(db, claim.job.id)
    assert (first, again) == (True, False)
    assert (after.worker_id, after.waiting_for, after.state) == (None, "model", "queued")
    with db.read() as session:
        pending = session.scalars(select(Outbox).where(Outbox.job_id == claim.job.id)).one()
    assert 55 < pending.due_at - pending.created_at <= 60


def test_a_zombie_puts_back_nothing_that_another_holds(db: Database) -> None:
    zombie = planning(db)
    with db.write() as session:
        ledger.revoke_lease(session, zombie.job.id, zombie.epoch, 0)
    heir = claim_job(db, zombie.job.id, Task.PLAN, "heir")

    with db.write() as session:
        assert not ledger.release(session, zombie.job.id, zombie.epoch)

    after = ledgers.job(db, heir.job.id)
    assert (after.epoch, after.worker_id) == (heir.epoch, "heir")
    assert outbox_messages(db, heir.job.id) == []


def test_a_released_finisher_is_enqueued_as_a_finish(db: Database) -> None:
    job = finishing(db)
    claim = claim_job(db, job.id, Task.FINISH)

    with db.write() as session:
        ledger.release(session, job.id, claim.epoch)

    assert outbox_messages(db, job.id) == [("finish", -1)]


def test_a_job_that_kills_whoever_plans_it_is_claimed_ever_later(db: Database) -> None:
    job = ledgers.submitted(db)
    waits = []
    for _ in range(16):
        with db.write() as session:
            session.execute(update(Outbox).values(due_at=0.0))
        claim = ledgers.claim_job(db, job.id, Task.PLAN)
        with db.write() as session:
            assert ledger.revoke_lease(session, job.id, claim.epoch, 0)
        with db.read() as session:
            waits.append(round(session.scalars(select(Outbox.due_at - Outbox.created_at)).one()))

    assert waits[:8] == [0] * 8
    assert waits[8:] == sorted(waits[8:])
    assert waits[-1] == 60
    assert outbox.claim_backoff(1_000_000) == 60


def test_a_lease_is_lost_only_where_the_heartbeat_stood_still(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        ledger.heartbeat(session, claim.job.id, claim.epoch, claim.worker_id)

    with db.write() as session:
        moved = ledger.revoke_lease(session, claim.job.id, claim.epoch, 0)
        still = ledger.revoke_lease(session, claim.job.id, claim.epoch, 1)
        twice = ledger.revoke_lease(session, claim.job.id, claim.epoch, 1)

    after = ledgers.job(db, claim.job.id)
    assert (moved, still, twice) == (False, True, False)
    assert (after.lost_leases, after.worker_id) == (1, None)
    assert outbox_messages(db, claim.job.id) == [("plan", -1)]


# ── cancel and expire ──


def test_cancelling_a_queued_job_ends_it_without_a_run(db: Database) -> None:
    job = submitted(db)

    with db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")

    assert outbox_messages(db, job.id) == [("finish", -1)]
    assert ledgers.close(db, job.id).state == JobState.CANCELLED
    assert history(db, job.id)[1:] == [("queued", "cancelling"), ("cancelling", "cancelled")]


def test_cancelling_while_a_planner_works_fences_the_planner(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        ledger.cancel(session, claim.job.id, actor="key:test")

    with pytest.raises(ClaimLost), db.write() as session:
        ledger.planned(session, claim, total=1, model="tiny", queue=Queue.GENERATE)
    assert state(db, claim.job.id) == JobState.CANCELLING


def test_cancelling_twice_happens_once(db: Database) -> None:
    job = running(db)

    for _ in range(2):
        with db.write() as session:
            assert ledger.cancel(session, job.id, actor="key:test").state == JobState.CANCELLING
    ledgers.close(db, job.id)
    with db.write() as session:
        assert ledger.cancel(session, job.id, actor="key:test").state == JobState.CANCELLED

    assert [target for _, target in history(db, job.id)] == ["queued", "running", "cancelling", "cancelled"]


def test_a_job_that_ends_by_itself_can_no_longer_be_cancelled(db: Database) -> None:
    job = finishing(db)

    with pytest.raises(Conflict, match="finishing"), db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")
    ledgers.close(db, job.id)
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


def test_of_a_cancel_and_the_last_shard_one_decides(db: Database) -> None:
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
        assert ledgers.shard(db, job.id).done == 4


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
        assert ledgers.close(db, job.id).state == JobState.CANCELLED


def test_many_cancels_at_once_are_one(db: Database) -> None:
    job = running(db)

    def cancel(_: int) -> object:
        with db.write() as session:
            return ledger.cancel(session, job.id, actor="key:test").state

    assert at_once(6, cancel) == [JobState.CANCELLING] * 6
    assert [target for _, target in history(db, job.id)] == ["queued", "running", "cancelling"]


def test_a_job_expires_when_its_window_has_passed_and_not_before(db: Database) -> None:
    late, early = submitted(db, deadline=10.0), submitted(db)

    with db.write() as session:
        assert ledger.overdue(session, 11.0) == [late.id]
        assert ledger.expire(session, early.id, actor="dispatcher") is None
        assert ledger.expire(session, "nobody", actor="dispatcher") is None
        expired = ledger.expire(session, late.id, actor="dispatcher")

    assert expired is not None
    assert expired.state == JobState.EXPIRING
    assert ledgers.close(db, late.id).state == JobState.EXPIRED


def test_a_job_without_a_deadline_never_expires_and_comes_after_those_with_one(db: Database) -> None:
    endless, late = submitted(db, deadline=None, window=""), submitted(db)

    with db.write() as session:
        assert ledger.overdue(session, ledgers.FAR) == [late.id]
        assert ledger.expire(session, endless.id, actor="dispatcher") is None
        due = outbox.due(session, Queue.PLAN, "proj_1", ledgers.FAR / 2, 10)
        places = [progress.queue_position(session, session.get_one(Job, job.id)) for job in (late, endless)]

    assert [message.job_id for message in due] == [late.id, endless.id]
    assert places == [0, 1]


def test_a_job_that_ends_already_does_not_expire(db: Database) -> None:
    job = finishing(db, deadline=10.0)

    with db.write() as session:
        assert ledger.expire(session, job.id, actor="dispatcher") is None
        assert ledger.overdue(session, 11.0) == []


# ── the end ──


def _go_on(db: Database, claim: ShardClaim) -> ledger.JobClaim | None:
    with db.write() as session:
        job = shards.commit(session, claim, 0, "a", 1, ledgers.tally(range(4)), last=True)
        assert job is not None
        return ledger.claim_finish(session, job, "worker")


def test_who_ran_all_of_a_job_has_the_right_to_finish_it(db: Database) -> None:
    job = running(db)

    claim = _go_on(db, claim_shard(db, job.id))

    assert claim is not None
    after = ledgers.job(db, job.id)
    assert (after.state, after.worker_id, after.epoch) == (JobState.FINISHING, "worker", claim.epoch)
    assert outbox_messages(db, job.id) == []
    with db.write() as session:
        ledger.close(session, claim, {"completed": 4}, [])
    assert state(db, job.id) == JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("scope", "name"), [(pauses.Scope.QUEUE, Queue.PLAN), (pauses.Scope.WORKER, "worker"), (None, "")]
)
def test_who_may_not_finish_a_job_leaves_it_to_others(db: Database, scope: pauses.Scope | None, name: str) -> None:
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


def test_nobody_finishes_a_job_of_which_a_shard_is_open(db: Database) -> None:
    job = running(db, [4, 4])

    assert _go_on(db, claim_shard(db, job.id, 0)) is None

    assert state(db, job.id) == JobState.RUNNING
    assert _go_on(db, claim_shard(db, job.id, 1)) is not None


def test_the_end_carries_counts_files_and_one_event(db: Database) -> None:
    job = finishing(db, [4, 4])
    claim = claim_job(db, job.id, Task.FINISH)
    output = File(
        id="file-1", project_id="proj_1", purpose="batch_output", filename="o", bytes=1, path="p", created_at=1.0
    )

    with db.write() as session:
        ledger.close(session, claim, {"completed": 8, "failed": 0, "output_file_id": "file-1"}, [output])

    after = ledgers.job(db, job.id)
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

    assert ledgers.job(db, job.id).completed == 4
    with db.read() as session:
        assert session.get(File, "file-z") is None


def test_a_close_whose_answer_was_lost_is_fenced_the_second_time_and_stands(database_url: str) -> None:
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


def test_a_cut_whose_answer_was_lost_is_cut_once(database_url: str) -> None:
    db = LosesAnswers(database_url)
    claim = planning(db)

    db.lose_next = True
    db.retrying(lambda session: shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4, 4])))

    assert outbox_messages(db, claim.job.id) == [("run", 0), ("run", 1)]
    db.close()


def test_two_last_shards_that_close_at_once_make_one_finish(db: Database) -> None:
    for _ in range(8):
        job = running(db, [2, 2])
        claims = [claim_shard(db, job.id, n) for n in range(2)]

        results = at_once(2, lambda n, claims=claims: answer(db, claims[n], range(2), last=True))  # type: ignore[misc]

        assert results == [None, None]
        assert state(db, job.id) == JobState.FINISHING
        assert outbox_messages(db, job.id) == [("finish", -1)]
        assert [target for _, target in history(db, job.id)].count("finishing") == 1


# ── the next step is always pending ──


def test_settling_again_and_again_changes_nothing(db: Database) -> None:
    jobs = [submitted(db), planning(db).job, running(db), finishing(db)]
    with db.read() as session:
        before = ledgers.everything(session)

    for job in jobs:
        with db.write() as session:
            ledger.advance_job(session, job.id, actor="dispatcher")
            ledger.advance_job(session, "nobody", actor="dispatcher")

    with db.read() as session:
        assert ledgers.everything(session) == before


def test_an_ended_job_has_no_message(db: Database) -> None:
    job = finishing(db)
    ledgers.close(db, job.id)

    with db.write() as session:
        ledger.advance_job(session, job.id, actor="dispatcher")

    assert outbox_messages(db, job.id) == []


def test_a_job_without_its_next_step_is_found_and_mended(db: Database) -> None:
    queued, cancelling, busy, done = submitted(db), running(db), running(db), running(db)
    with db.write() as session:
        ledger.cancel(session, cancelling.id, actor="key:test")
    claim_shard(db, busy.id)
    last = claim_shard(db, done.id)
    with db.write() as session:  # a shard closed, and its worker died before it settled the job
        shards.commit(session, last, 0, "path", 1, ledgers.tally(range(4)), last=True)
        session.execute(delete(Outbox))

    with db.write() as session:
        lost = ledger.without_next_step(session)
        for job_id in lost:
            ledger.advance_job(session, job_id, actor="dispatcher")

    assert set(lost) == {queued.id, cancelling.id, done.id}
    assert outbox_messages(db, queued.id) == [("plan", -1)]
    assert outbox_messages(db, cancelling.id) == [("finish", -1)]
    assert state(db, done.id) == JobState.FINISHING
    with db.read() as session:
        assert ledger.without_next_step(session) == []


def test_who_holds_a_job_is_listed(db: Database) -> None:
    submitted(db)
    claim = planning(db)

    with db.read() as session:
        assert ledger.claimed(session) == [(claim.job.id, claim.epoch, 0, "planner")]


def test_sums_are_those_of_the_shards(db: Database) -> None:
    job = running(db, [4, 4])
    answer(db, claim_shard(db, job.id, 0), range(4), last=True, bad=[1])
    answer(db, claim_shard(db, job.id, 1), [0])

    with db.read() as session:
        assert ledger.sums(session, job.id) == {
            "completed": 4,
            "failed": 1,
            "input_tokens": 15,
            "cached_tokens": 5,
            "output_tokens": 10,
            "reasoning_tokens": 5,
        }
        assert set(ledger.sums(session, "nobody").values()) == {0}


# ── what the guards are made of ──


def test_a_stale_read_is_caught_by_the_update_itself(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock reads the newest row; should it ever not, the WHERE still knows."""
    job = submitted(db)
    stale = ledgers.new_job(id=job.id, state=JobState.QUEUED, epoch=7, event_seq=1)
    monkeypatch.setattr(ledger, "lock", lambda *_: stale)

    with pytest.raises(ClaimLost), db.write() as session:
        ledger.move(session, job.id, JobState.QUEUED, JobState.CANCELLING, actor="someone")


def test_each_terminal_event_is_enqueued_for_whom_it_concerns(db: Database) -> None:
    with db.write() as session:
        for name, types, gone in (
            ("wants", ["batch.completed"], None),
            ("other", ["batch.failed"], None),
            ("off", ["batch.completed"], 1.0),
        ):
            session.add(
                WebhookEndpoint(
                    id=name, project_id="proj_1", name=name, url="https://a", event_types=types, secret="s",
                    created_at=1.0, disabled_at=gone,
                )
            )  # fmt: skip
    job = finishing(db, webhook_url="https://mine")
    stranger = finishing(db, project_id="proj_2")

    ledgers.close(db, job.id)
    ledgers.close(db, stranger.id)

    with db.read() as session:
        pending = session.execute(select(Delivery.endpoint_id, Delivery.job_id).order_by(Delivery.endpoint_id)).all()
        ends = session.scalar(select(func.count()).where(Event.type == "batch.completed"))
    assert {(row.endpoint_id, row.job_id) for row in pending} == {("wants", None), (None, job.id)}
    assert ends == 2


def test_every_move_has_its_audit_row(db: Database) -> None:
    job = finishing(db)
    ledgers.close(db, job.id)

    with db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.target == job.id)).all()
        moves = session.get_one(Job, job.id).event_seq
    assert len(rows) == moves == 4
    assert not set(LIVE) & {state(db, job.id)}


def test_lists_by_state_and_the_counts_of_the_metrics_look_at_indexes_alone(sqlite: Database) -> None:
    """A million jobs that have ended cost neither of them anything."""
    one_state = "SELECT id FROM job WHERE project_id = 'p' AND state = 'failed' ORDER BY created_at DESC, id DESC"
    counts = "SELECT kind, state, count(*) FROM job GROUP BY kind, state"
    with sqlite.read() as session:
        listed, counted = (str(session.execute(text(f"EXPLAIN QUERY PLAN {one}")).all()) for one in (one_state, counts))

    assert "ix_job_project_state" in listed
    assert "ORDER BY" not in listed
    assert "ix_job_kind_state" in counted


def test_what_cannot_be_planned_is_tried_so_many_times_and_fails(db: Database) -> None:
    job_id = submitted(db).id

    states = []
    for _ in range(3):
        claim = claim_job(db, job_id, Task.PLAN)
        with db.write() as session:
            failed = ledger.record_failed_attempt(session, claim, tries=3, delay=5, error={"code": "internal_error"})
            states.append((failed.state, failed.failed_attempts))

    assert states == [(JobState.QUEUED, 1), (JobState.QUEUED, 2), (JobState.FAILED, 3)]
    assert ledgers.job(db, job_id).errors == [{"code": "internal_error"}]


def test_what_fails_when_it_was_cut_in_part_has_no_message_any_more(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, ledgers.cuts(claim.job.id, [1, 1]))
    pending = ledgers.outbox_messages(db, claim.job.id)

    with db.write() as session:
        ledger.record_failed_attempt(session, claim, tries=1, delay=5, error={"code": "internal_error"})

    assert (len(pending), ledgers.state(db, claim.job.id)) == (2, JobState.FAILED)
    assert ledgers.outbox_messages(db, claim.job.id) == []
