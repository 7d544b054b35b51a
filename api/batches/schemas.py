"""Show a job as OpenAI's Batch, with every key."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.http.fields import Dependent, dependence, unix_seconds
from api.webhooks.queries import BatchWebhook
from jobs.ledger.progress import Totals
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]

STATUS: dict[str, BatchStatus] = {
    JobState.QUEUED: "validating",
    JobState.RUNNING: "in_progress",
    JobState.FINISHING: "finalizing",
    JobState.EXPIRING: "finalizing",
    JobState.CANCELLING: "cancelling",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "expired",
    JobState.CANCELLED: "cancelled",
}


class BatchError(BaseModel):
    code: str | None
    line: int | None
    message: str | None
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    """The exact sum over the batch's lines."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchPrompt(BaseModel):
    """A prompt that lines of a batch name, by its version or label, and the version that was found for all of them."""

    id: str
    requested_version: str | None
    version: str


class Batch(Dependent):
    """A batch. `prompts` are those that its lines name, once it is planned; other batches omit them.

    `dataset` is the split of a dataset that its input is; other batches omit it.
    `resolved_model` is the model that answers the lines, drawn once from those of an alias when the batch is planned;
    it is null until then. `model` is the same.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    resolved_model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: Usage
    metadata: dict[str, str] | None
    prompts: list[BatchPrompt] = Field(default=[], exclude_if=lambda prompts: not prompts)
    dataset: str | None = Field(default=None, exclude_if=lambda dataset: dataset is None)


class CreatedBatch(Batch):
    """A batch as its creation answers it."""

    webhook: BatchWebhook | None


def show_batch(job: Job, totals: Totals, after: Sequence[str] = ()) -> Batch:
    return Batch(
        id=job.id,
        endpoint=job.endpoint,
        model=job.model,
        resolved_model=job.model,
        errors=show_errors(job.errors),
        input_file_id=job.input_file_id or "",
        completion_window=job.window,
        status=STATUS[job.state],
        output_file_id=job.output_file_id,
        error_file_id=job.error_file_id,
        created_at=int(job.created_at),
        in_progress_at=unix_seconds(job.in_progress_at),
        expires_at=unix_seconds(job.deadline),
        finalizing_at=unix_seconds(job.finalizing_at or job.expiring_at),
        completed_at=unix_seconds(job.completed_at),
        failed_at=unix_seconds(job.failed_at),
        expired_at=unix_seconds(job.expired_at),
        cancelling_at=unix_seconds(job.cancelling_at),
        cancelled_at=unix_seconds(job.cancelled_at),
        request_counts=RequestCounts(total=job.total, completed=totals.completed, failed=totals.failed),
        usage=show_usage(totals),
        metadata=job.metadata_,
        prompts=[_show_pin(*pin) for pin in job.payload.get("prompts", {}).items()],
        dataset=job.payload.get("dataset"),
        **dependence(job, after),
    )


def _show_pin(reference: str, version: str) -> BatchPrompt:
    prompt_id, _, requested = reference.partition("@")
    return BatchPrompt(id=prompt_id, requested_version=requested or None, version=version)


def show_errors(errors: list[Any] | None) -> BatchErrors | None:
    return BatchErrors(data=[BatchError(**error) for error in errors]) if errors else None


def show_usage(totals: Totals) -> Usage:
    return Usage(
        input_tokens=totals.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=totals.cached_tokens),
        output_tokens=totals.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=totals.reasoning_tokens),
        total_tokens=totals.input_tokens + totals.output_tokens,
    )


#: For the OpenAPI document.
PATTERN = "^[1-9][0-9]{0,5}[smhd]$"
