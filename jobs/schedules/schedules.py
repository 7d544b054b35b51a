"""Schedules of recurring batches: rows with a cron expression and a request, which the dispatcher fires.

    due (next_at ≤ now) ──▶ fire: submit the job and advance next_at, in one transaction: exactly once
                               └─ the input file was deleted, or the key may not: no job, but an error

Times that passed while no dispatcher ran are made up for by one job, not one each.
"""

from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches.batches import BatchRequest, job_of
from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.files.tables import File
from jobs.ledger import audit, ledger
from jobs.ledger.tables import Job
from jobs.requests.cron import next_after
from jobs.schedules.tables import Schedule
from jobs.security.ended_keys import REFUSALS, find_refusal


def due(session: Session, limit: int = 100) -> Sequence[str]:
    """Return the schedules that are due."""
    ready = select(Schedule.id).where(Schedule.paused_at.is_(None), Schedule.next_at <= now())
    return session.scalars(ready.order_by(Schedule.next_at).limit(limit)).all()


def fire(session: Session, schedule_id: str) -> Job | None:
    """Submit the next job of a due schedule; return None when the schedule is not due any more, or cannot submit."""
    schedule = session.scalar(select(Schedule).where(Schedule.id == schedule_id).with_for_update())
    at = now()
    if schedule is None or schedule.paused_at is not None or schedule.next_at > at:
        return None
    try:
        schedule.next_at = next_after(schedule.cron, schedule.timezone, at)
    except InvalidRequest as error:  # the time was valid once: time zones change with the system
        schedule.paused_at = at
        _miss(session, schedule, error.message)
        return None
    schedule.last_at = at
    if schedule.key_id and (code := find_refusal(session, schedule.key_id, "api.schedules.write")):
        _miss(session, schedule, REFUSALS[code])
        return None
    try:
        request = BatchRequest.model_validate(schedule.request)
        job = job_of(request, schedule.project_id, schedule_id=schedule.id)
    except (ValidationError, KeyError):  # written by another version, whose dispatcher may lead again
        _miss(session, schedule, "This version does not take its request.")
        return None
    statement = select(File).where(File.id == request.input_file_id, File.deleted_at.is_(None))
    file = session.scalar(statement.with_for_update(read=True))
    if file is None:
        _miss(session, schedule, f"The input file '{request.input_file_id}' is gone.")
        return None
    job.input_path, job.key_id = file.path, schedule.key_id
    schedule.last_error, schedule.last_job_id = None, job.id
    return ledger.submit(session, job, actor=_actor(schedule))


def _miss(session: Session, schedule: Schedule, why: str) -> None:
    schedule.last_error = why
    actor, action = _actor(schedule), "schedule.miss"
    audit.record(session, actor=actor, action=action, target=schedule.id, project_id=schedule.project_id)


def _actor(schedule: Schedule) -> str:
    return f"schedule:{schedule.id}"
