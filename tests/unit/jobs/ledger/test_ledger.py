"""The ledger: claims, cancellation and expiry, the next step that is always pending, and answers that get lost."""

from collections.abc import Callable

import pytest
from sqlalchemy import delete, func, select, text, update

from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.ledger import ledger, outbox, shards, statements
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Audit, Job, Outbox
from jobs.queues import Queue, Task
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint
from tests.support import sample_jobs
from tests.support.sample_jobs import (
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
    submitted,
    told,
)

pytestmark = pytest.mark.dialects


# ── submit ──


def test_a_submitted_job_has_its_event_its_audit_row_and_its_message(db: Database) -> None:
    job = submitted(db)

    assert state(db, job.id) == JobState.QUEUED
    assert told(db, job.id) == [(1, "job.created")]
    assert history(db, job.id) == [(None, "queued")]
    assert outbox_messages(db, job.id) == [("plan", -1)]


def test_a_submit_that_is_rolled_back_leaves_nothing(db: Database) -> None:
    with sample_jobs.rolled_back(db) as session:
        ledger.submit(session, sample_jobs.new_job(), actor="key:test")

    with db.read() as session:
        assert sample_jobs.everything(session) == ((),) * 6


# ── claims on a job ──


def test_concurrent_claims_on_job_grant_single_claim(db: Database) -> None:
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

    assert sample_jobs.job(db, claim.job.id).waiting_for is None


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

    assert sample_jobs.job(db, claim.job.id).heartbeat == 1


# ── planning ──


def test_a_planned_job_runs_and_its_shards_are_enqueued(db: Database) -> None:
    job = running(db, [4, 4, 2])

    after = sample_jobs.job(db, job.id)
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
        before = sample_jobs.everything(session)

    zombie: list[Callable[[], object]] = [
        lambda: shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4])),
        lambda: shards.uncut(session, claim, 10),
        lambda: ledger.set_retry_input(session, claim, "elsewhere"),
        lambda: ledger.begin_running(session, claim, total=4, model="tiny", queue=Queue.GENERATE),
        lambda: ledger.reject(session, claim, [{"code": "invalid"}]),
    ]
    for write in zombie:
        with pytest.raises(ClaimLost), db.write() as session:
            write()

    with db.read() as session:
        assert sample_jobs.everything(session) == before


def test_second_planner_removes_shards_of_first_planner(db: Database) -> None:
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
    assert sample_jobs.shard(db, first.job.id, 1).lines == 6


def test_shard_of_job_in_planning_cannot_be_claimed(db: Database) -> None:
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

    after = sample_jobs.job(db, claim.job.id)
    assert (after.state, after.errors) == ("failed", [{"line": 2, "code": "invalid_json"}])
    assert outbox_messages(db, claim.job.id) == []


def test_retry_input_of_planner_is_stored(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        ledger.set_retry_input(session, claim, "jobs/1/input.jsonl")

    assert sample_jobs.job(db, claim.job.id).input_path == "jobs/1/input.jsonl"


# ── a claim that ends without a result ──


def test_released_job_is_enqueued_after_delay(db: Database) -> None:
    claim = planning(db)

    with db.write() as session:
        first = ledger.release(session, claim.job.id, claim.epoch, delay=60, waiting_for="model")
        again = ledger.release(session, claim.job.id, claim.epoch)

    after = sample_jobs.job(db, claim.job.id)
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

    after = sample_jobs.job(db, heir.job.id)
    assert (after.epoch, after.worker_id) == (heir.epoch, "heir")
    assert outbox_messages(db, heir.job.id) == []


def test_a_released_finisher_is_enqueued_as_a_finish(db: Database) -> None:
    job = finishing(db)
    claim = claim_job(db, job.id, Task.FINISH)

    with db.write() as session:
        ledger.release(session, job.id, claim.epoch)

    assert outbox_messages(db, job.id) == [("finish", -1)]


def test_repeatedly_lost_planning_claims_are_delayed_by_backoff(db: Database) -> None:
    job = sample_jobs.submitted(db)
    waits = []
    for _ in range(16):
        with db.write() as session:
            session.execute(update(Outbox).values(due_at=0.0))
        claim = sample_jobs.claim_job(db, job.id, Task.PLAN)
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

    after = sample_jobs.job(db, claim.job.id)
    assert (moved, still, twice) == (False, True, False)
    assert (after.lost_leases, after.worker_id) == (1, None)
    assert outbox_messages(db, claim.job.id) == [("plan", -1)]


# ── the next step is always pending ──


def test_repeated_advance_changes_nothing(db: Database) -> None:
    jobs = [submitted(db), planning(db).job, running(db), finishing(db)]
    with db.read() as session:
        before = sample_jobs.everything(session)

    for job in jobs:
        with db.write() as session:
            ledger.advance_job(session, job.id, actor="dispatcher")
            ledger.advance_job(session, "nobody", actor="dispatcher")

    with db.read() as session:
        assert sample_jobs.everything(session) == before


def test_an_ended_job_has_no_message(db: Database) -> None:
    job = finishing(db)
    sample_jobs.close(db, job.id)

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
        shards.commit(session, last, 0, "path", 1, sample_jobs.tally(range(4)), last=True)
        session.execute(delete(Outbox))

    with db.write() as session:
        lost = ledger.jobs_lacking_next_step(session)
        for job_id in lost:
            ledger.advance_job(session, job_id, actor="dispatcher")

    assert set(lost) == {queued.id, cancelling.id, done.id}
    assert outbox_messages(db, queued.id) == [("plan", -1)]
    assert outbox_messages(db, cancelling.id) == [("finish", -1)]
    assert state(db, done.id) == JobState.FINISHING
    with db.read() as session:
        assert ledger.jobs_lacking_next_step(session) == []


def test_claimed_job_is_listed_with_its_worker(db: Database) -> None:
    submitted(db)
    claim = planning(db)

    with db.read() as session:
        assert ledger.current_claims(session) == [(claim.job.id, claim.epoch, 0, "planner")]


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
    stale = sample_jobs.new_job(id=job.id, state=JobState.QUEUED, epoch=7, event_seq=1)
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

    sample_jobs.close(db, job.id)
    sample_jobs.close(db, stranger.id)

    with db.read() as session:
        pending = session.execute(select(Delivery.endpoint_id, Delivery.job_id).order_by(Delivery.endpoint_id)).all()
        ends = session.scalar(select(func.count()).where(Event.type == "batch.completed"))
    assert {(row.endpoint_id, row.job_id) for row in pending} == {("wants", None), (None, job.id)}
    assert ends == 2


def test_every_move_has_its_audit_row(db: Database) -> None:
    job = finishing(db)
    sample_jobs.close(db, job.id)

    with db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.target == job.id)).all()
        moves = session.get_one(Job, job.id).event_seq
    assert len(rows) == moves == 4
    assert not set(LIVE) & {state(db, job.id)}


def test_lists_by_state_and_the_counts_of_live_jobs_look_at_an_index_first(sqlite: Database) -> None:
    """A million jobs that have ended cost neither of them anything."""
    one_state = "SELECT id FROM job WHERE project_id = 'p' AND state = 'failed' ORDER BY created_at DESC, id DESC"
    counts = "SELECT kind, state, count(*) FROM job WHERE state IN ('queued', 'running') GROUP BY kind, state"
    with sqlite.read() as session:
        listed, counted = (str(session.execute(text(f"EXPLAIN QUERY PLAN {one}")).all()) for one in (one_state, counts))

    assert "ix_job_project_state" in listed
    assert "ORDER BY" not in listed
    assert "ix_job_state_deadline (state=?)" in counted


def test_failed_planning_is_retried_until_limit_and_fails_job(db: Database) -> None:
    job_id = submitted(db).id

    states = []
    for _ in range(3):
        claim = claim_job(db, job_id, Task.PLAN)
        with db.write() as session:
            failed = ledger.record_failed_attempt(session, claim, tries=3, delay=5, error={"code": "internal_error"})
            states.append((failed.state, failed.failed_attempts))

    assert states == [(JobState.QUEUED, 1), (JobState.QUEUED, 2), (JobState.FAILED, 3)]
    assert sample_jobs.job(db, job_id).errors == [{"code": "internal_error"}]


def test_failed_partially_cut_job_has_no_outbox_messages(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, sample_jobs.cuts(claim.job.id, [1, 1]))
    pending = sample_jobs.outbox_messages(db, claim.job.id)

    with db.write() as session:
        ledger.record_failed_attempt(session, claim, tries=1, delay=5, error={"code": "internal_error"})

    assert (len(pending), sample_jobs.state(db, claim.job.id)) == (2, JobState.FAILED)
    assert sample_jobs.outbox_messages(db, claim.job.id) == []
