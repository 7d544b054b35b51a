"""The ledger: the only writer of a job's state.

    submit ─▶ claim(plan) ─▶ planned ─▶ … shards … ─▶ advance_job ─▶ claim(finish) ─▶ close
                  └─▶ reject        cancel / expire ─▶ advance_job ┘

Each function takes the caller's session and runs in its transaction; the audit row, the event, the deliveries and
the messages are written there too. Guards stand in the WHERE: source state and epoch. A holder that lost its
claim gets `ClaimLost` and has changed nothing. `jobs.ledger.shards` is the same for the shards of a running job.

On PostgreSQL rows are locked in one order: the job, its shards, its messages.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import row_of
from jobs.db.engine import execute_and_count
from jobs.errors import ClaimLost, Conflict, TooManyLiveJobs
from jobs.files.tables import File
from jobs.ledger import audit, dependencies, events, kinds, measures, outbox, pauses, statements
from jobs.ledger.states import CLOSING, LIVE, MOVES, TERMINAL, JobState, ShardState
from jobs.ledger.tables import TOKENS, Job, Outbox, Shard
from jobs.queues import Queue, Task
from jobs.security.tables import Project

#: The column that is stamped on entering each state.
STAMPS: dict[JobState, str] = {
    JobState.RUNNING: "in_progress_at",
    JobState.FINISHING: "finalizing_at",
    JobState.EXPIRING: "expiring_at",
    JobState.CANCELLING: "cancelling_at",
    JobState.SUCCEEDED: "completed_at",
    JobState.FAILED: "failed_at",
    JobState.EXPIRED: "expired_at",
    JobState.CANCELLED: "cancelled_at",
}


@dataclass(frozen=True, slots=True)
class JobClaim:
    """The right to plan or finish a job until a newer epoch exists."""

    job: Job
    epoch: int
    worker_id: str


def submit(session: Session, job: Job, *, actor: str, after: Sequence[str] = ()) -> Job:
    """Add a new job, its first event, its audit row and its plan message, in the caller's transaction.

    The job belongs to the key of `actor`, unless it names another. Without a message it waits until the jobs named in
    `after` have completed.
    Raises InvalidRequest for these, UnknownKind.
    """
    kinds.of(job.kind)  # raises UnknownKind
    job.state = JobState.QUEUED
    job.event_seq = 1
    job.key_id = job.key_id or audit.key_of(actor)
    session.add(job)
    session.flush()
    dependencies.add(session, job, after)
    _event(session, job, "job.created")
    audit.record(
        session,
        actor=actor,
        action="job.submit",
        target=job.id,
        project_id=job.project_id,
        destination=job.state,
        request_id=job.request_id,
    )
    if after and dependencies.is_open(session, job.id):
        job.waiting_for = dependencies.WAITING
        session.flush()
    else:
        outbox.enqueue(session, job, Task.PLAN, Queue.PLAN)
    return job


def release_dependent(session: Session, job_id: str) -> bool:
    """Let a job that waits for others be planned once all of them have completed; return whether that is so."""
    job = lock(session, job_id)
    if job is None or job.waiting_for != dependencies.WAITING or dependencies.is_open(session, job_id):
        return False
    wait_for(session, job_id, None)
    outbox.enqueue(session, job, Task.PLAN, Queue.PLAN)
    return True


def dependency_error(session: Session, job: Job) -> dict[str, Any] | None:
    """Return the error of a locked job that waits for one which will never complete; None when it may still run."""
    failed = dependencies.failed_predecessor(session, job.id) if job.waiting_for == dependencies.WAITING else None
    if failed is None:
        return None
    message = f"The job waited for '{failed[0]}', which ended in state '{failed[1]}'."
    return {"code": "dependency_failed", "message": message, "line": None, "param": "after"}


def fail_dependent(session: Session, job: Job, error: dict[str, Any], *, actor: str) -> Job:
    """End a locked job because of its `dependency_error`: none of its lines was run."""
    source, target, reason = JobState.QUEUED, JobState.FAILED, str(error["code"])
    return move(session, job.id, source, target, actor=actor, reason=reason, values={"errors": [error]}, locked=job)


def move(
    session: Session,
    job_id: str,
    sources: JobState | Collection[JobState],
    target: JobState,
    *,
    actor: str,
    epoch: int | None = None,
    reason: str | None = None,
    values: Mapping[str, Any] | None = None,
    event: str | None = None,
    locked: Job | None = None,
) -> Job:
    """Take a job along one arrow of `states.MOVES`, with its audit row and its event.

    `event` replaces the usual type of the event. `locked` is the job, where this transaction has locked it.

    Raises ValueError for an arrow that is not in the table, ClaimLost when the guard fails.
    """
    allowed = {sources} if isinstance(sources, JobState) else set(sources)
    if any(target not in MOVES[source] for source in allowed):
        raise ValueError(f"no move {sorted(allowed)} -> {target}")
    job = locked or lock(session, job_id)
    if job is None or job.state not in allowed or epoch not in (None, job.epoch):
        raise ClaimLost
    source = JobState(job.state)
    guard = {"its_job": job_id, "its_state": source, "its_epoch": job.epoch}
    changes = {
        "state": target.value,
        STAMPS[target]: now(),
        "event_seq": job.event_seq + 1,
        "epoch": job.epoch + 1,
        "worker_id": None,
        "waiting_for": None,
        **(values or {}),
    }
    if not statements.changes_one(session, statements.MOVE, {**guard, **changes}):
        raise ClaimLost
    statements.apply_values(job, changes)
    _record_move(session, job, source, actor=actor, reason=reason, event=event)
    return job


def lock(session: Session, job_id: str) -> Job | None:
    """Return the job as it is now, locked until the transaction ends; None when there is none."""
    return session.scalar(statements.LOCK, {"its_job": job_id})


def claim(session: Session, job_id: str, task: Task, worker_id: str) -> JobClaim | None:
    """Take a job for planning or finishing; return None when there is nothing to take (a stale message)."""
    job = lock(session, job_id)  # or this would remove a message that another transaction enqueues meanwhile
    if job is not None and pauses.refuses(session, task, job, outbox.JOB, worker_id):
        return None
    taken = statements.changes_one(session, statements.TAKE[task], {"its_job": job_id, "its_worker": worker_id})
    outbox.remove_claimed(session, task, job_id)
    if job is None or not taken:
        return None
    statements.apply_values(job, {"epoch": job.epoch + 1, "heartbeat": 0, "worker_id": worker_id, "waiting_for": None})
    return JobClaim(job, job.epoch, worker_id)


def heartbeat(session: Session, job_id: str, epoch: int, worker_id: str) -> bool:
    """Increment the heartbeat of a claim on a job; return False when it is no longer held."""
    claim_filter = {"its_job": job_id, "its_epoch": epoch, "its_worker": worker_id}
    return statements.changes_one(session, statements.HEARTBEAT, claim_filter)


def assert_claim(session: Session, claim: JobClaim) -> None:
    """Increment the heartbeat of a claim, and so keep its row locked. Raises ClaimLost when it is no longer held."""
    if not heartbeat(session, claim.job.id, claim.epoch, claim.worker_id):
        raise ClaimLost


def stop(session: Session, claim: JobClaim, end: JobState, errors: Sequence[Mapping[str, Any]]) -> bool:
    """Stop some of what a claimed job that comes to this `end` will not make; return whether there may be more.

    Another worker that takes over from a dead one finds what is left. Raises ClaimLost.
    """
    stopping = kinds.lenient(claim.job.kind).stop
    if stopping is None:
        return False
    assert_claim(session, claim)
    job = lock(session, claim.job.id)
    assert job is not None
    return stopping(session, job, end, errors)


def check_room(session: Session, project_id: str, kind: str, limit: int) -> None:
    """Check that a project may have one more live job of a kind. Raises TooManyLiveJobs.

    The project is locked, so that creates at the same moment count each other.
    """
    session.get(Project, project_id, with_for_update={"key_share": True})
    live = Job.project_id == project_id, Job.kind == kind, Job.state.in_(LIVE)
    if (session.scalar(select(func.count()).select_from(Job).where(*live)) or 0) >= limit:
        message = f"The project has {limit} jobs of kind '{kind}' that have not ended, and may not have more."
        raise TooManyLiveJobs(message)


def set_retry_input(session: Session, claim: JobClaim, path: str) -> None:
    """Note the path of the lines that a retry runs, a copy of those that were left over. Raises ClaimLost."""
    claim_filter = and_(Job.id == claim.job.id, Job.epoch == claim.epoch, Job.worker_id == claim.worker_id)
    if execute_and_count(session, update(Job).where(claim_filter).values(input_path=path)) != 1:
        raise ClaimLost


def begin_running(
    session: Session,
    claim: JobClaim,
    *,
    total: int,
    model: str | None,
    queue: str,
    serves_as: str | None = None,
    payload: dict[str, Any] | None = None,
) -> Job:
    """Move a planned job to `running`: the messages of its shards, enqueued while planning, become due.

    `payload` replaces the job's where planning has found what it leaves open.
    """
    planned = {} if payload is None else {"payload": payload}
    job = move(
        session,
        claim.job.id,
        JobState.QUEUED,
        JobState.RUNNING,
        actor=_worker(claim),
        epoch=claim.epoch,
        values={"total": total, "model": model, "queue": queue, "serves_as": serves_as, **planned},
    )
    advance_job(session, job.id, actor=_worker(claim), locked=job)
    return job


def reject(session: Session, claim: JobClaim, errors: list[dict[str, Any]]) -> Job:
    """Fail a job whose input is not valid, with its errors by line. No line was run."""
    job = move(
        session,
        claim.job.id,
        JobState.QUEUED,
        JobState.FAILED,
        actor=_worker(claim),
        epoch=claim.epoch,
        values={"errors": errors},
    )
    outbox.forget(session, job.id)
    return job


def close(
    session: Session,
    claim: JobClaim,
    values: Mapping[str, Any],
    files: Collection[File],
    outcomes: Mapping[str, int] = {},
    *,
    event: str | None = None,
    errors: Sequence[dict[str, Any]] = (),
    locked: Job | None = None,
) -> Job:
    """Write the final counts, the rows of the result files and the terminal state of a job at once. Raises ClaimLost.

    With `errors` the job fails, although all of it was run. `locked` is the job, where this transaction has locked it.
    """
    source = JobState(claim.job.state)
    job = move(
        session,
        claim.job.id,
        source,
        JobState.FAILED if errors else CLOSING[source],
        actor=_worker(claim),
        epoch=claim.epoch,
        reason=str(errors[0].get("code")) if errors else None,
        values={**values, "errors": list(errors)} if errors else values,
        event=event,
        locked=locked,
    )
    if files:  # after the guard: of a close whose answer was lost they are there already
        session.connection().execute(statements.ADD_FILE, list(map(row_of, files)))
    if outcomes:
        rows = [{"job_id": job.id, "name": name, "count": count} for name, count in outcomes.items()]
        session.connection().execute(statements.ADD_OUTCOME, rows)
    return job


def record_failed_attempt(session: Session, claim: JobClaim, *, tries: int, delay: float, error: dict[str, Any]) -> Job:
    """Count a failed attempt to plan or finish; try again after `delay`, fail after `tries` attempts.

    Raises ClaimLost.
    """
    assert_claim(session, claim)
    session.execute(update(Job).where(Job.id == claim.job.id).values(failed_attempts=Job.failed_attempts + 1))
    job = lock(session, claim.job.id)
    assert job is not None
    if job.failed_attempts < tries:
        release(session, job.id, claim.epoch, delay=delay)
        return job
    outbox.forget(session, job.id)  # those of shards that were cut
    return move(
        session,
        job.id,
        JobState(job.state),
        JobState.FAILED,
        actor=_worker(claim),
        epoch=claim.epoch,
        reason=str(error.get("code")),
        values={**sums(session, job.id), "errors": [error]},
    )


def release(session: Session, job_id: str, epoch: int, *, delay: float = 0.0, waiting_for: str | None = None) -> bool:
    """End a claim on a job without a result and enqueue its message again; return False when the claim was lost."""
    claim_filter = and_(Job.id == job_id, Job.epoch == epoch, Job.worker_id.is_not(None))
    freed = update(Job).where(claim_filter).values(worker_id=None, epoch=Job.epoch + 1, waiting_for=waiting_for)
    if execute_and_count(session, freed) != 1:
        return False
    job = lock(session, job_id)
    assert job is not None
    _enqueue_next_step(session, job, delay)
    return True


def wait_for_jobs(session: Session, claim: JobClaim, job_ids: Sequence[str]) -> None:
    """End a claim on the planning of a job, which is planned again once these new jobs have completed.

    The caller makes the jobs in the same transaction. None of them may wait for the claimed job.

    Raises: ClaimLost, InvalidRequest.
    """
    assert_claim(session, claim)
    dependencies.add(session, claim.job, job_ids)
    waiting = {"worker_id": None, "epoch": Job.epoch + 1, "waiting_for": dependencies.WAITING}
    session.execute(update(Job).where(Job.id == claim.job.id).values(waiting))


def revoke_lease(session: Session, job_id: str, epoch: int, heartbeat: int) -> bool:
    """Revoke a claim whose heartbeat stood still at `heartbeat` for a lease; return False if it moved after all."""
    still = and_(Job.id == job_id, Job.epoch == epoch, Job.heartbeat == heartbeat, Job.worker_id.is_not(None))
    counted = update(Job).where(still).values(lost_leases=Job.lost_leases + 1)
    return execute_and_count(session, counted) == 1 and release(
        session, job_id, epoch, delay=outbox.claim_backoff(epoch)
    )


def cancel(session: Session, job_id: str, *, actor: str, error: dict[str, Any] | None = None) -> Job:
    """Cancel a queued or running job; do nothing when it is cancelled already.

    `error` is why, where its client did not ask for that. Raises Conflict when it has ended, or ends, in another state.
    """
    job = lock(session, job_id)
    assert job is not None
    state = JobState(job.state)
    if state in (JobState.CANCELLING, JobState.CANCELLED):
        return job
    if JobState.CANCELLING not in MOVES[state]:
        raise Conflict(f"Cannot cancel a job in state '{state}'.")
    return _stop(session, job_id, JobState.CANCELLING, actor, error)


def expire(session: Session, job_id: str, *, actor: str) -> Job | None:
    """Move a job past its deadline to `expiring`: what is done is kept.

    Return None when the job is beyond that already.
    """
    job = lock(session, job_id)
    if job is None or JobState.EXPIRING not in MOVES[JobState(job.state)]:
        return None
    if job.deadline is None or job.deadline > now():
        return None
    return _stop(session, job_id, JobState.EXPIRING, actor)


def advance_job(session: Session, job_id: str, *, actor: str, locked: Job | None = None) -> None:
    """Enqueue the next step of a job that is due for one.

    Harmless at any time, from any process, any number of times.
    """
    job = locked or lock(session, job_id)
    if job is None or job.state in TERMINAL or job.worker_id is not None or job.waiting_for == dependencies.WAITING:
        return
    if job.state == JobState.RUNNING:
        open_shards = session.scalar(statements.OPEN, {"its_job": job_id})
        if not open_shards:
            move(session, job_id, JobState.RUNNING, JobState.FINISHING, actor=actor, locked=job)
            _enqueue_next_step(session, job, 0.0)
        return
    if not session.scalar(statements.BUSY, {"its_job": job_id}):
        _enqueue_next_step(session, job, 0.0)


def claim_finish(session: Session, job: Job, worker_id: str) -> JobClaim | None:
    """Claim the finishing of a locked job for the worker that ran its last shard, without a message.

    Return None when the step is enqueued instead (a pause), or not due.
    """
    actor = f"worker:{worker_id}"
    if (
        job.state != JobState.RUNNING
        or job.worker_id is not None
        or pauses.current_pauses(session).holds_finishing(worker_id)
    ):
        advance_job(session, job.id, actor=actor, locked=job)
        return None
    if session.scalar(statements.OPEN, {"its_job": job.id}):
        return None
    values, source, target = {"worker_id": worker_id}, JobState.RUNNING, JobState.FINISHING
    move(session, job.id, source, target, actor=actor, values=values, locked=job)
    return JobClaim(job, job.epoch, worker_id)


def jobs_lacking_next_step(session: Session, limit: int = 200) -> list[str]:
    """Return live jobs that may lack their next step: not claimed, without a message, and no shard of them runs."""
    of_job = Outbox.job_id == Job.id
    pending = exists().where(of_job, or_(Outbox.shard_n == outbox.JOB, Job.state == JobState.RUNNING))
    busy = exists().where(Shard.job_id == Job.id, Shard.state == ShardState.RUNNING)
    free = Job.worker_id.is_(None), Job.waiting_for.is_distinct_from(dependencies.WAITING)
    statement = select(Job.id).where(Job.state.in_(LIVE), *free, ~pending, ~busy).limit(limit)
    return list(session.scalars(statement))


def overdue(session: Session, at: float, limit: int = 100) -> list[str]:
    """Return jobs whose completion window has passed and that are not ending yet."""
    open_states = [state for state, targets in MOVES.items() if JobState.EXPIRING in targets]
    statement = select(Job.id).where(Job.state.in_(open_states), Job.deadline <= at).order_by(Job.deadline)
    return list(session.scalars(statement.limit(limit)))


def current_claims(session: Session) -> list[tuple[str, int, int, str]]:
    """Return the claims on jobs: id, epoch, heartbeat, worker. A job that has ended has none: every move ends it."""
    statement = select(Job.id, Job.epoch, Job.heartbeat, Job.worker_id).where(Job.worker_id.is_not(None))
    return [(job_id, epoch, heartbeat, worker or "") for job_id, epoch, heartbeat, worker in session.execute(statement)]


BUSY = exists().where(Shard.job_id == Job.id, Shard.state == ShardState.RUNNING)  # of jobs


def idle(session: Session, which: ColumnElement[bool], limit: int = 200) -> Sequence[Job]:
    """Return such running jobs of which no shard runs and whose `waiting_for` is empty."""
    still = select(Job).where(Job.state == JobState.RUNNING, Job.waiting_for.is_(None), which, ~BUSY)
    return session.scalars(still.limit(limit)).all()


def jobs_waiting_for(session: Session, what: str, which: ColumnElement[bool], limit: int = 200) -> Sequence[str]:
    """Return the ids of such running jobs whose `waiting_for` is `what`."""
    waiting = select(Job.id).where(Job.state == JobState.RUNNING, Job.waiting_for == what, which)
    return session.scalars(waiting.limit(limit)).all()


def wait_for(session: Session, job_id: str, what: str | None) -> None:
    """Set what a job waits for; None for nothing.

    That is `job`, `model`, `worker`, `disk`, `pause`, `time`, `device` or `spend_limit`.
    """
    session.execute(update(Job).where(Job.id == job_id, Job.state.in_(LIVE)).values(waiting_for=what))


def note_errors(session: Session, job: Job, errors: Sequence[Mapping[str, Any]]) -> None:
    """Write down why a locked job whose work has ended will fail: its finish closes it with these errors."""
    job.errors = [dict(error) for error in errors]
    session.flush()


def sums(session: Session, job_id: str) -> dict[str, int]:
    """Return the counts and tokens of a job, summed over its shards."""
    row = session.execute(
        select(
            func.coalesce(func.sum(Shard.done - Shard.failed), 0),
            func.coalesce(func.sum(Shard.failed), 0),
            *(func.coalesce(func.sum(getattr(Shard, name)), 0) for name in TOKENS),
        ).where(Shard.job_id == job_id)
    ).one()
    return dict(zip(("completed", "failed", *TOKENS), map(int, row), strict=True))


def _stop(session: Session, job_id: str, target: JobState, actor: str, error: dict[str, Any] | None = None) -> Job:
    why: dict[str, Any] = {"reason": error["code"], "values": {"errors": [error]}} if error else {}
    job = move(session, job_id, {JobState.QUEUED, JobState.RUNNING}, target, actor=actor, **why)
    outbox.forget(session, job_id)
    advance_job(session, job_id, actor=actor)
    return job


def _enqueue_next_step(session: Session, job: Job, delay: float) -> None:
    task = Task.PLAN if job.state == JobState.QUEUED else Task.FINISH
    outbox.enqueue(session, job, task, Queue.PLAN, delay=delay)


def _record_move(
    session: Session, job: Job, source: JobState, *, actor: str, reason: str | None, event: str | None
) -> None:
    target = JobState(job.state)
    audit.record(
        session,
        actor=actor,
        action="job.move",
        target=job.id,
        project_id=job.project_id,
        source=source,
        destination=target,
        request_id=job.request_id,
        details={"reason": reason} if reason else None,
    )
    if target is JobState.SUCCEEDED:
        for dependent_id in dependencies.dependents(session, job.id):
            release_dependent(session, dependent_id)
    if target in TERMINAL:
        measures.observe_end(session, job)
    kind = kinds.lenient(job.kind)
    if kind.ended and target in TERMINAL:
        kind.ended(session, job)
    _event(session, job, event or kind.event(job.id, target))


def _event(session: Session, job: Job, kind: str) -> None:
    event = events.record(
        session, subject_id=job.id, seq=job.event_seq, project_id=job.project_id, type=kind, data={"id": job.id}
    )
    events.fan_out(session, event, job)


def _worker(claim: JobClaim) -> str:
    return f"worker:{claim.worker_id}"
