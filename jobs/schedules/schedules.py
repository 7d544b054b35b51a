"""Schedules: rows with a cron expression and the request for a job, which the dispatcher fires.

    due (next_at ≤ now) ──▶ fire: submit the job and advance next_at, in one transaction: exactly once
                              └─ refused (its file was deleted, a limit is reached, the key may not):
                                 miss: advance next_at and store the error, without a job

Times that passed while no dispatcher ran are made up for by one job, not one each.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pydantic import ValidationError
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound, PermissionDenied, StorageFull, TooManyLiveJobs
from jobs.files.tables import File
from jobs.fleet.models_file import Registry
from jobs.ledger import audit
from jobs.ledger.tables import Job
from jobs.pipelines import pipelines, steps
from jobs.pipelines.pipelines import PipelineRequest
from jobs.pipelines.steps import RequestKind, Submitter
from jobs.requests.cron import next_after
from jobs.schedules.tables import Schedule, ScheduleFile
from jobs.security.ended_keys import REFUSALS, find_refusal
from jobs.settings import Settings
from jobs.usage import stored_bytes
from jobs.usage.project_limits import limit_of

PERMISSION: Final = "api.schedules.write"
MAX_SCHEDULES: Final = 1000  # of a project
#: Bytes of the request of a schedule.
MAX_BYTES: Final = pipelines.MAX_BYTES
#: Why a due schedule submits no job.
Refused: Final = (InvalidRequest, NotFound, PermissionDenied, StorageFull, TooManyLiveJobs)


def _submit_pipeline(session: Session, submitter: Submitter, request: PipelineRequest) -> Job:
    return pipelines.submit(
        session,
        request.steps,
        project_id=submitter.project_id,
        actor=submitter.actor,
        name=request.name,
        metadata=request.metadata,
        key_id=submitter.key_id,
        **submitter.columns,
    )


def _files_of_pipeline(request: PipelineRequest) -> Iterable[str | None]:
    for step in request.steps:
        kind = steps.KINDS[step.kind]
        yield from kind.files(kind.request.model_validate(step.request))


_PIPELINE: Final = RequestKind(
    pipelines.NAME, pipelines.PERMISSION, PipelineRequest, _submit_pipeline, _files_of_pipeline
)
#: The kinds of jobs that schedules submit, by name.
KINDS: Final[Mapping[str, RequestKind]] = {**steps.KINDS, _PIPELINE.name: _PIPELINE}


def due(session: Session, limit: int = 100) -> Sequence[str]:
    """Return the schedules that are due."""
    ready = select(Schedule.id).where(Schedule.paused_at.is_(None), Schedule.next_at <= now())
    return session.scalars(ready.order_by(Schedule.next_at).limit(limit)).all()


def fire(session: Session, schedule_id: str, config: Settings, registry: Registry) -> Job | None:
    """Submit the next job of a due schedule; return None when the schedule is not due any more.

    Raises: those of `Refused`, for which the caller records a `miss` in another transaction.
    """
    schedule = _advance(session, schedule_id)
    if schedule is None:
        return None
    kind = KINDS.get(schedule.kind)
    if kind is None:
        raise _other_version()
    for permission in (PERMISSION, kind.permission):
        if schedule.key_id and (code := find_refusal(session, schedule.key_id, permission)):
            raise PermissionDenied(REFUSALS[code], code=code)
    limit = limit_of(session, config, schedule.project_id, "max_bytes")
    stored_bytes.check_not_full(session, schedule.project_id, limit)
    columns = {"schedule_id": schedule.id}
    submitter = Submitter(config, registry, schedule.project_id, schedule.key_id, _actor(schedule), columns)
    try:
        job = kind.submit(session, submitter, kind.request.model_validate(schedule.request))
    except (ValidationError, KeyError) as error:  # stored by another version, whose dispatcher may lead again
        raise _other_version() from error
    schedule.last_error, schedule.last_job_id = None, job.id
    return job


def miss(session: Session, schedule_id: str, reason: str) -> None:
    """Record why a due schedule submits no job this time."""
    if schedule := _advance(session, schedule_id):
        _record_miss(session, schedule, reason)


def keep_files(session: Session, schedule: Schedule) -> None:
    """Let the files that the request of a new schedule names not expire, beside its input file."""
    kind = KINDS[schedule.kind]
    named = set(kind.files(kind.request.model_validate(schedule.request))) - {None, schedule.input_file_id}
    owned = select(File.id).where(File.project_id == schedule.project_id)
    for file_id in sorted(filter(None, named)):
        if session.scalar(owned.where(File.id == file_id)) is not None:  # else a reference
            session.add(ScheduleFile(schedule_id=schedule.id, file_id=file_id))


def remove(session: Session, schedule: Schedule) -> None:
    """Delete a schedule. Its files may expire then."""
    session.execute(delete(ScheduleFile).where(ScheduleFile.schedule_id == schedule.id))
    session.delete(schedule)


def _advance(session: Session, schedule_id: str) -> Schedule | None:
    """Lock a schedule that is due and set its next time; return None for others.

    A schedule whose time zone the system no longer knows is paused.
    """
    schedule = session.scalar(select(Schedule).where(Schedule.id == schedule_id).with_for_update())
    at = now()
    if schedule is None or schedule.paused_at is not None or schedule.next_at > at:
        return None
    try:
        schedule.next_at = next_after(schedule.cron, schedule.timezone, at)
    except InvalidRequest as error:  # the time was valid once: time zones change with the system
        schedule.paused_at = at
        _record_miss(session, schedule, error.message)
        return None
    schedule.last_at = at
    return schedule


def _record_miss(session: Session, schedule: Schedule, reason: str) -> None:
    schedule.last_error = reason
    actor, action = _actor(schedule), "schedule.miss"
    audit.record(session, actor=actor, action=action, target=schedule.id, project_id=schedule.project_id)


def _actor(schedule: Schedule) -> str:
    return f"schedule:{schedule.id}"


def _other_version() -> InvalidRequest:
    return InvalidRequest("This version does not take its request.")
