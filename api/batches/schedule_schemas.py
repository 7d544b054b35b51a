"""A schedule, as the API shows it."""

from typing import Literal

from pydantic import BaseModel

from api.http.fields import when
from api.http.job_webhook import BatchWebhook
from jobs.batches.batches import BatchRequest
from jobs.ledger.tables import Schedule


class ScheduledBatch(BaseModel):
    """What is submitted each time. The webhook's secret is not shown."""

    endpoint: str
    input_file_id: str
    completion_window: str
    priority: int
    dedupe: bool
    output_expires_seconds: int | None
    metadata: dict[str, str] | None
    webhook_url: str | None


class ScheduleObject(BaseModel):
    """`last_error` says why the last time brought no batch; null when it did."""

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
    """A schedule as its create answers it: the only place where a secret that was made here is told."""

    webhook: BatchWebhook | None


class ScheduleDeleted(BaseModel):
    id: str
    object: Literal["schedule.deleted"] = "schedule.deleted"
    deleted: bool


def show_schedule(schedule: Schedule) -> ScheduleObject:
    wanted = BatchRequest.model_validate(schedule.request)
    return ScheduleObject(
        id=schedule.id,
        cron=schedule.cron,
        timezone=schedule.timezone,
        batch=ScheduledBatch(**wanted.model_dump(include=set(ScheduledBatch.model_fields))),
        status="active" if schedule.paused_at is None else "paused",
        next_run_at=int(schedule.next_at),
        last_run_at=when(schedule.last_at),
        last_batch_id=schedule.last_job_id,
        last_error=schedule.last_error,
        created_at=int(schedule.created_at),
    )
