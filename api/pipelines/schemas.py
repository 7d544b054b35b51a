"""The bodies of requests about pipelines, and the objects that clients see."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from api.batches.routes import BatchFields
from api.datasets.schemas import CreateDatasetVersion
from api.evals.schemas import CreateRun
from api.finetuning.schemas import CreateFineTuningJob
from api.http.bodies import Body, Many
from api.http.fields import Metadata, unix_seconds
from api.monitoring.schemas import CreateBaseline, CreateDriftCheck
from api.promotions.schemas import CreatePromotion
from api.retrieval.queries import Attributes
from api.retrieval.schemas import ChunkingStrategy
from jobs.evals.templates import NAMESPACES
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job
from jobs.pipelines.pipelines import MAX_STEPS, Pipeline, StepEntry


def _check_name(name: str) -> str:
    if name in NAMESPACES:
        raise ValueError(f"'{name}' is the name of what templates of evals read.")
    return name


StepName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$"), AfterValidator(_check_name)]

# ── requests ──


class BatchStepRequest(BatchFields):
    """A batch, without a webhook: the pipeline has events of its own."""

    webhook: None = None


class FineTuningStepRequest(CreateFineTuningJob):
    """A fine-tuning job. The step says what it waits for."""

    after: None = None


class EvalRunStepRequest(CreateRun):
    """A run of the eval `eval_id`, whose items are those of a file."""

    eval_id: str = Field(min_length=1, max_length=64)


class DatasetStepRequest(CreateDatasetVersion):
    """A version of `dataset`, an id or a name. Stored answers are no source: they are looked up in a request."""

    dataset: str = Field(min_length=1, max_length=64)


class IngestionStepRequest(Body):
    """Files to add to a vector store, which share attributes and chunking. A file that is named twice is added once."""

    vector_store_id: str = Field(min_length=1, max_length=64)
    file_ids: Annotated[Many[Annotated[str, Field(max_length=64)]], Field(min_length=1)]
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class PromotionStepRequest(CreatePromotion):
    """A promotion. The pipeline fails where it moves nothing."""


_MonitorId = Annotated[str, Field(min_length=1, max_length=64)]


class DriftBaselineStepRequest(CreateBaseline):
    """Another baseline of a monitor of drift: after a promotion, for example."""

    monitor_id: _MonitorId


class DriftCheckStepRequest(CreateDriftCheck):
    """A check of a monitor of drift. It completes whether or not there is drift, of which an event tells."""

    monitor_id: _MonitorId


class _Step(Body):
    name: StepName
    after: Annotated[Many[StepName], Field(max_length=MAX_STEPS)] = Field(
        default=[], description="Steps to wait for, besides those that the request refers to."
    )


class BatchStep(_Step):
    kind: Literal["batch"]
    request: BatchStepRequest


class FineTuningStep(_Step):
    kind: Literal["fine_tuning"]
    request: FineTuningStepRequest


class EvalRunStep(_Step):
    kind: Literal["eval_run"]
    request: EvalRunStepRequest


class DatasetStep(_Step):
    kind: Literal["dataset"]
    request: DatasetStepRequest


class IngestionStep(_Step):
    kind: Literal["ingestion"]
    request: IngestionStepRequest


class PromotionStep(_Step):
    kind: Literal["promotion"]
    request: PromotionStepRequest


class DriftBaselineStep(_Step):
    kind: Literal["drift_baseline"]
    request: DriftBaselineStepRequest


class DriftCheckStep(_Step):
    kind: Literal["drift_check"]
    request: DriftCheckStepRequest


Step = Annotated[
    BatchStep
    | FineTuningStep
    | EvalRunStep
    | DatasetStep
    | IngestionStep
    | PromotionStep
    | DriftBaselineStep
    | DriftCheckStep,
    Field(discriminator="kind"),
]


class CreatePipeline(Body):
    """A pipeline. `{{name.field}}` in a string of a request is a result of the step of that name."""

    name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    steps: Annotated[Many[Step], Field(min_length=1, max_length=MAX_STEPS)]
    metadata: Metadata | None = None


# ── objects ──

PipelineStatus = Literal["in_progress", "completed", "failed", "cancelling", "cancelled"]
StepStatus = Literal["waiting", "in_progress", "completed", "failed", "cancelled", "skipped"]


class StepError(BaseModel):
    code: str
    message: str
    param: str | None


class PipelineStepObject(BaseModel):
    """A step. `job_id` is the job that it has made, null until it is released. A `skipped` step never made one."""

    name: str
    kind: Literal[
        "batch", "fine_tuning", "eval_run", "dataset", "ingestion", "promotion", "drift_baseline", "drift_check"
    ]
    after: list[str]
    status: StepStatus
    id: str
    job_id: str | None
    error: StepError | None


class PipelineObject(BaseModel):
    id: str
    object: Literal["pipeline"] = "pipeline"
    name: str | None
    status: PipelineStatus
    steps: list[PipelineStepObject]
    resumed_from: str | None
    created_at: int
    ended_at: int | None
    metadata: dict[str, str] | None


_STATUS: Mapping[str, PipelineStatus] = {
    **dict.fromkeys(LIVE, "in_progress"),
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
    JobState.CANCELLING: "cancelling",
    JobState.CANCELLED: "cancelled",
}


def status_of(job: Job) -> PipelineStatus:
    return _STATUS[job.state]


def states_of(status: PipelineStatus) -> list[str]:
    """Return the states of the jobs whose pipelines have a status."""
    return [state for state, shown in _STATUS.items() if shown == status]


def show_pipeline(job: Job, steps: Mapping[str, Any], made: Mapping[str, Any]) -> PipelineObject:
    """Return a pipeline as clients see it. `steps` are the jobs of its steps by id, `made` the jobs that they made."""
    payload = Pipeline.model_validate(job.payload)
    return PipelineObject(
        id=job.id,
        name=payload.name,
        status=status_of(job),
        steps=[_show_step(entry, steps.get(entry.id), made.get(entry.id)) for entry in payload.steps],
        resumed_from=job.retry_of,
        created_at=int(job.created_at),
        ended_at=unix_seconds(job.completed_at or job.failed_at or job.expired_at or job.cancelled_at),
        metadata=job.metadata_,
    )


def _show_step(entry: StepEntry, step: Any, made: Any) -> PipelineStepObject:
    """Return a step as clients see it. A step that was removed long after its end has completed."""
    status = _step_status(step, made)
    errors: Sequence[Mapping[str, Any]] = []
    if status == "failed":
        errors = (made.errors if made is not None else None) or step.errors or []
    error = StepError.model_validate({"param": None, **errors[0]}) if errors else None
    return PipelineStepObject(
        **entry.model_dump(), status=status, job_id=None if made is None else made.id, error=error
    )


def _step_status(step: Any, made: Any) -> StepStatus:
    if step is None or step.state == JobState.SUCCEEDED:
        return "completed"
    if step.state in LIVE:
        return "waiting" if made is None else "in_progress"
    if made is not None:
        return "cancelled" if step.state == JobState.CANCELLED else "failed"
    was_released = step.state == JobState.FAILED and (step.errors or [{}])[0].get("code") != "dependency_failed"
    return "failed" if was_released else "skipped"
