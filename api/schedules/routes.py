"""Serve schedules, which submit a job at the times of a cron expression.

This module creates, shows, pauses and deletes them. The leading dispatcher looks for due ones, and
`jobs.schedules.schedules.fire` submits their jobs.
"""

from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, defer

from api.batches.routes import BatchFields
from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.pipelines.schemas import CreatePipeline
from api.pipelines.step_requests import build_request, define_steps, errors_below
from api.schedules.schemas import (
    CreatedSchedule,
    CreateSchedule,
    ScheduleDeleted,
    ScheduleDetails,
    ScheduleObject,
    show_details,
    show_schedule,
)
from api.webhooks.queries import Hook, show_webhook
from jobs.batches.batches import BatchRequest, input_file, pin_input
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, MissingPermission, NotFound
from jobs.ids import new_id
from jobs.pipelines.pipelines import PipelineRequest
from jobs.pipelines.placeholders import find_references
from jobs.requests.cron import next_after
from jobs.schedules import schedules
from jobs.schedules.schedules import KINDS, MAX_BYTES, MAX_SCHEDULES
from jobs.schedules.tables import Schedule
from jobs.security.tables import Project

router = resource("Schedules", area="schedules")


@router.post("/schedules", response_model=CreatedSchedule)
def create_schedule(call: Call, once: Idempotent, body: CreateSchedule) -> Response:
    """Create a schedule, which submits a job at each time of the cron expression."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    created = now()
    first = next_after(body.cron, body.timezone, created)
    kind, job, param = _choose_job(body)
    request = _build_request(call, kind, job, param)
    hook = _hook_of(job, request)

    def make(session: Session) -> CreatedSchedule:
        _check_count(session, call)
        pinned = _pin(session, call, request, param)
        schedule = Schedule(
            id=new_id("sched_"),
            project_id=call.project_id,
            key_id=call.caller.key_id,
            cron=body.cron,
            timezone=body.timezone,
            kind=kind,
            request=pinned.model_dump(mode="json", exclude_none=True),  # for the last release, which knows no datasets
            input_file_id=pinned.input_file_id if isinstance(pinned, BatchRequest) else None,
            next_at=first,
            created_at=created,
        )
        if kind != "batch":  # JSON null is not NULL
            schedule.job = job.fields()
        session.add(schedule)
        schedules.keep_files(session, schedule)
        call.record(session, "schedule.create", schedule.id)
        return CreatedSchedule(**show_details(schedule).model_dump(), webhook=show_webhook(hook))

    return once.run(fields, make)


@router.get("/schedules")
def list_schedules(call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc") -> Page[ScheduleObject]:
    """List the project's schedules."""
    own = _schedules_of(call).options(defer(Schedule.job))
    with call.db.read() as session:
        deletions = deletion_details(call, "schedule.delete")
        rows, more = find(session, own, Schedule, after=after, limit=limit, order=order, deletions=deletions)
    return page(rows, more, show_schedule)


@router.get("/schedules/{schedule_id}")
def retrieve_schedule(call: Call, schedule_id: str) -> ScheduleDetails:
    """Return one schedule, with its request, its next time, and the job or the error of its last time."""
    with call.db.read() as session:
        return show_details(_get(session, call, schedule_id, lock=False))


@router.post("/schedules/{schedule_id}/pause")
def pause_schedule(call: Call, schedule_id: str) -> ScheduleDetails:
    """Submit no jobs until the schedule is resumed. Pausing twice is not an error."""
    with call.db.write() as session:
        schedule = _get(session, call, schedule_id)
        if schedule.paused_at is None:
            schedule.paused_at = now()
            call.record(session, "schedule.pause", schedule.id)
        return show_details(schedule)


@router.post("/schedules/{schedule_id}/resume")
def resume_schedule(call: Call, schedule_id: str) -> ScheduleDetails:
    """Submit jobs again, from the next time of the cron expression on. Times that passed meanwhile are skipped."""
    with call.db.write() as session:
        schedule = _get(session, call, schedule_id)
        if schedule.paused_at is not None:
            schedule.paused_at = None
            schedule.next_at = next_after(schedule.cron, schedule.timezone, now())
            call.record(session, "schedule.resume", schedule.id)
        return show_details(schedule)


@router.delete("/schedules/{schedule_id}")
def delete_schedule(call: Call, schedule_id: str) -> ScheduleDeleted:
    """Remove a schedule. Jobs that it submitted go on."""
    with call.db.write() as session:
        schedule = _get(session, call, schedule_id)
        schedules.remove(session, schedule)
        call.record(session, "schedule.delete", schedule.id, cursor_details(schedule))
        return ScheduleDeleted(id=schedule.id, deleted=True)


def _schedules_of(call: CallContext) -> Select[Schedule]:
    return select(Schedule).where(Schedule.project_id == call.project_id)


def _get(session: Session, call: CallContext, schedule_id: str, *, lock: bool = True) -> Schedule:
    query = _schedules_of(call).where(Schedule.id == schedule_id)
    schedule = session.scalar(query.with_for_update() if lock else query)
    if schedule is None:
        raise NotFound(f"No schedule found with id '{clip(schedule_id)}'.", param="schedule_id")
    return schedule


def _check_count(session: Session, call: CallContext) -> None:
    """Check that the project may have one more schedule. Raises Conflict."""
    session.get_one(Project, call.project_id, with_for_update={"key_share": True})  # counts alone
    count = session.scalar(select(func.count()).select_from(_schedules_of(call).subquery())) or 0
    if count >= MAX_SCHEDULES:
        message = f"A project has at most {MAX_SCHEDULES} schedules. Delete some first."
        raise Conflict(message, code="too_many_schedules")


# ── requests ──


def _choose_job(body: CreateSchedule) -> tuple[str, Body, str]:
    """Return the kind of the job that a schedule is to submit, its request, and the field with it.

    Raises: InvalidRequest.
    """
    if body.batch is not None and body.job is None:
        return "batch", body.batch, "batch"
    if body.job is not None and body.batch is None:
        return body.job.type, body.job, "job"
    message = "A schedule takes either a 'job' or a 'batch'."
    raise InvalidRequest(message, param="job", code="missing_required_parameter" if body.job is None else None)


def _build_request(call: CallContext, kind: str, job: Body, param: str) -> BaseModel:
    """Check the request for a job, all of whose values are known; return it as it is stored.

    Raises: InvalidRequest, MissingPermission, NotFound.
    """
    if isinstance(job, CreatePipeline):
        if (permission := KINDS[kind].permission) not in call.caller.permissions:
            raise MissingPermission(permission)
        with errors_below(param):
            steps = define_steps(call, job.steps)
        return PipelineRequest(name=job.name, steps=steps, metadata=job.metadata)
    for reference in find_references(job.fields()) if param == "job" else ():  # `batch` takes any text
        message = "Only steps of a pipeline refer to results of other steps."
        raise InvalidRequest(message, param=f"{param}.{reference.param}", code="step_not_found")
    request = build_request(call, kind, job, param)
    if len(request.model_dump_json().encode()) > MAX_BYTES:
        message = f"The request has more than {MAX_BYTES} bytes."
        raise InvalidRequest(message, param=param, code="schedule_too_large")
    return request


def _pin(session: Session, call: CallContext, request: BaseModel, param: str) -> BaseModel:
    """Return a request whose input file is fixed and locked, where it is one for a batch. Raises InvalidRequest."""
    if not isinstance(request, BatchRequest):
        return request
    with errors_below(param):
        pinned = pin_input(session, call.project_id, request)
        if input_file(session, call.project_id, pinned.input_file_id) is None:
            message = f"No file found with id '{clip(pinned.input_file_id)}'."
            raise InvalidRequest(message, param="input_file_id", code="file_not_found")
    return pinned


def _hook_of(job: Body, request: BaseModel) -> Hook | None:
    """Return the webhook of a batch."""
    if not isinstance(job, BatchFields) or not isinstance(request, BatchRequest) or job.webhook is None:
        return None
    return Hook(str(request.webhook_url), str(request.webhook_secret), made=job.webhook.secret is None)
