"""Schedules as clients write and see them: the request of each kind of job, and the schedule with its last time."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.batches.routes import BatchFields
from api.http.bodies import Body
from api.http.fields import unix_seconds
from api.pipelines.schemas import (
    CreatePipeline,
    DatasetStepRequest,
    DriftBaselineStepRequest,
    DriftCheckStepRequest,
    EvalRunStepRequest,
    FineTuningStepRequest,
    IngestionStepRequest,
)
from api.webhooks.queries import BatchWebhook
from jobs.batches.batches import BatchRequest
from jobs.schedules.tables import Schedule

Kind = Literal["batch", "fine_tuning", "eval_run", "dataset", "ingestion", "drift_baseline", "drift_check", "pipeline"]

# ── requests ──


class RecurringBatch(BatchFields):
    type: Literal["batch"]


class RecurringFineTuning(FineTuningStepRequest):
    type: Literal["fine_tuning"]


class RecurringEvalRun(EvalRunStepRequest):
    type: Literal["eval_run"]


class RecurringDataset(DatasetStepRequest):
    type: Literal["dataset"]


class RecurringIngestion(IngestionStepRequest):
    type: Literal["ingestion"]


class RecurringDriftBaseline(DriftBaselineStepRequest):
    type: Literal["drift_baseline"]


class RecurringDriftCheck(DriftCheckStepRequest):
    type: Literal["drift_check"]


class RecurringPipeline(CreatePipeline):
    type: Literal["pipeline"]


RecurringJob = Annotated[
    RecurringBatch
    | RecurringFineTuning
    | RecurringEvalRun
    | RecurringDataset
    | RecurringIngestion
    | RecurringDriftBaseline
    | RecurringDriftCheck
    | RecurringPipeline,
    Field(discriminator="type"),
]


class CreateSchedule(Body):
    """A schedule to create, with either a `job` or a `batch`.

    `job` has a `type`, and beside it the fields of a request for such a job. `batch` has the fields of a batch.
    """

    cron: str = Field(min_length=1, max_length=128, description="Five fields: `0 3 * * mon-fri`.")
    timezone: str = Field(default="UTC", min_length=1, max_length=64, description="As `Europe/Zurich`.")
    batch: BatchFields | None = None
    job: RecurringJob | None = None


# ── objects ──


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
    """A schedule. `batch` is null where it submits jobs of another kind, `last_batch_id` too.

    `last_error` says why no job was submitted at the last time; it is null when one was.
    """

    id: str
    object: Literal["schedule"] = "schedule"
    cron: str
    timezone: str
    kind: Kind
    batch: ScheduledBatch | None
    status: Literal["active", "paused"]
    next_run_at: int
    last_run_at: int | None
    last_job_id: str | None
    last_batch_id: str | None
    last_error: str | None
    created_at: int


class ScheduleDetails(ScheduleObject):
    """A schedule with its request for a job, as the client sent it; null for a batch. Lists lack it: it may be long."""

    job: dict[str, Any] | None


class CreatedSchedule(ScheduleDetails):
    """The answer to the creation of a schedule, and the only one that shows a generated secret of its webhook."""

    webhook: BatchWebhook | None


class ScheduleDeleted(BaseModel):
    id: str
    object: Literal["schedule.deleted"] = "schedule.deleted"
    deleted: bool


def show_schedule(schedule: Schedule) -> ScheduleObject:
    is_batch = schedule.kind == "batch"
    return ScheduleObject(
        id=schedule.id,
        cron=schedule.cron,
        timezone=schedule.timezone,
        kind=schedule.kind,
        batch=_show_batch(schedule) if is_batch else None,
        status="active" if schedule.paused_at is None else "paused",
        next_run_at=int(schedule.next_at),
        last_run_at=unix_seconds(schedule.last_at),
        last_job_id=schedule.last_job_id,
        last_batch_id=schedule.last_job_id if is_batch else None,
        last_error=schedule.last_error,
        created_at=int(schedule.created_at),
    )


def show_details(schedule: Schedule) -> ScheduleDetails:
    return ScheduleDetails(**show_schedule(schedule).model_dump(), job=schedule.job)


def _show_batch(schedule: Schedule) -> ScheduledBatch:
    request = BatchRequest.model_validate(schedule.request)
    return ScheduledBatch(**request.model_dump(include=set(ScheduledBatch.model_fields)))
