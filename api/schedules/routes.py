"""Serve schedules, which submit a batch at the times of a cron expression.

This module creates, shows, pauses and deletes them. The leading dispatcher looks for due ones, and
`jobs.schedules.schedules.fire` submits their batches.
"""

from typing import Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.batches.routes import BatchFields, build_request
from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.webhooks.queries import BatchWebhook, check_webhook, show_webhook
from jobs.batches.batches import BatchRequest, input_file, pin_input
from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.requests.cron import next_after
from jobs.schedules.tables import Schedule


class ScheduledBatch(BaseModel):
    """The batch that is submitted each time. The webhook's secret is not shown.

    `dataset` is the split of a dataset that its input is; other schedules omit it.
    """

    endpoint: str
    input_file_id: str
    completion_window: str
    priority: int
    dedupe: bool
    output_expires_seconds: int | None
    metadata: dict[str, str] | None
    webhook_url: str | None
    dataset: str | None = Field(default=None, exclude_if=lambda dataset: dataset is None)


class ScheduleObject(BaseModel):
    """A schedule. `last_error` says why no batch was submitted at the last time; it is null when one was."""

    id: str
    object: Literal["schedule"] = "schedule"
    cron: str
    timezone: str
    batch: ScheduledBatch
    status: Literal["active", "paused"]
    next_run_at: int
    last_run_at: int | None
    last_batch_id: str | None
    last_error: str | None
    created_at: int


class CreatedSchedule(ScheduleObject):
    """The answer to the creation of a schedule, and the only one that shows a generated secret of its webhook."""

    webhook: BatchWebhook | None


class ScheduleDeleted(BaseModel):
    id: str
    object: Literal["schedule.deleted"] = "schedule.deleted"
    deleted: bool


def show_schedule(schedule: Schedule) -> ScheduleObject:
    batch_request = BatchRequest.model_validate(schedule.request)
    return ScheduleObject(
        id=schedule.id,
        cron=schedule.cron,
        timezone=schedule.timezone,
        batch=ScheduledBatch(**batch_request.model_dump(include=set(ScheduledBatch.model_fields))),
        status="active" if schedule.paused_at is None else "paused",
        next_run_at=int(schedule.next_at),
        last_run_at=unix_seconds(schedule.last_at),
        last_batch_id=schedule.last_job_id,
        last_error=schedule.last_error,
        created_at=int(schedule.created_at),
    )


router = resource("Schedules", area="schedules")


class CreateSchedule(Body):
    """A schedule to create. `batch` has the fields of a batch."""

    cron: str = Field(min_length=1, max_length=128, description="Five fields: `0 3 * * mon-fri`.")
    timezone: str = Field(default="UTC", min_length=1, max_length=64, description="As `Europe/Zurich`.")
    batch: BatchFields


@router.post("/schedules", response_model=CreatedSchedule)
def create_schedule(call: Call, once: Idempotent, body: CreateSchedule) -> Response:
    """Create a schedule, which submits a batch over its file at each time of the cron expression."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    created = now()
    first = next_after(body.cron, body.timezone, created)
    hook = check_webhook(call, body.batch.webhook)
    batch_request = build_request(call, body.batch, hook)

    def make(session: Session) -> CreatedSchedule:
        pinned = pin_input(session, call.project_id, batch_request)
        if input_file(session, call.project_id, pinned.input_file_id) is None:
            message = f"No file found with id '{clip(pinned.input_file_id)}'."
            raise InvalidRequest(message, param="batch.input_file_id", code="file_not_found")
        schedule = Schedule(
            id=new_id("sched_"),
            project_id=call.project_id,
            key_id=call.caller.key_id,
            cron=body.cron,
            timezone=body.timezone,
            request=pinned.model_dump(mode="json", exclude_none=True),  # for the last release, which knows no datasets
            input_file_id=pinned.input_file_id,
            next_at=first,
            created_at=created,
        )
        session.add(schedule)
        call.record(session, "schedule.create", schedule.id)
        return CreatedSchedule(**show_schedule(schedule).model_dump(), webhook=show_webhook(hook))

    return once.run(fields, make)


@router.get("/schedules")
def list_schedules(call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc") -> Page[ScheduleObject]:
    """List the project's schedules."""
    with call.db.read() as session:
        deletions = deletion_details(call, "schedule.delete")
        rows, more = find(
            session, _schedules_of(call), Schedule, after=after, limit=limit, order=order, deletions=deletions
        )
    return page(rows, more, show_schedule)


@router.get("/schedules/{schedule_id}")
def retrieve_schedule(call: Call, schedule_id: str) -> ScheduleObject:
    """Return one schedule, with its next time, and the batch or the error of its last time."""
    with call.db.read() as session:
        return show_schedule(_get(session, call, schedule_id, lock=False))


@router.post("/schedules/{schedule_id}/pause")
def pause_schedule(call: Call, schedule_id: str) -> ScheduleObject:
    """Submit no batches until the schedule is resumed. Pausing twice is not an error."""
    with call.db.write() as session:
        schedule = _get(session, call, schedule_id)
        if schedule.paused_at is None:
            schedule.paused_at = now()
            call.record(session, "schedule.pause", schedule.id)
        return show_schedule(schedule)


@router.post("/schedules/{schedule_id}/resume")
def resume_schedule(call: Call, schedule_id: str) -> ScheduleObject:
    """Submit batches again, from the next time of the cron expression on. Times that passed meanwhile are skipped."""
    with call.db.write() as session:
        schedule = _get(session, call, schedule_id)
        if schedule.paused_at is not None:
            schedule.paused_at = None
            schedule.next_at = next_after(schedule.cron, schedule.timezone, now())
            call.record(session, "schedule.resume", schedule.id)
        return show_schedule(schedule)


@router.delete("/schedules/{schedule_id}")
def delete_schedule(call: Call, schedule_id: str) -> ScheduleDeleted:
    """Remove a schedule. Batches that it submitted go on."""
    with call.db.write() as session:
        schedule = _get(session, call, schedule_id)
        session.delete(schedule)
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
