"""Batches: their kinds, and the job that a request becomes: by the API at once, or by a schedule when it is due."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from jobs.clock import now
from jobs.ids import new_id
from jobs.ledger.kinds import Kind, Payload
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES

PREFIX: Final = "batch_"
OUTPUT: Final = "batch_output"  # the purpose of a file that a batch has made; its name begins with the batch's id

#: The endpoints that a batch may name, and the kind of job that each makes.
ENDPOINTS: Final[dict[str, str]] = {
    RESPONSES: "generation",
    CHAT: "generation",
    COMPLETIONS: "generation",
    EMBEDDINGS: "embedding",
    RERANK: "reranking",
}

#: OpenAI's names of the terminal states of a batch; these events go to webhooks.
EVENTS: Final[dict[str, str]] = {
    "succeeded": "batch.completed",
    "failed": "batch.failed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}


class Batch(Payload):
    """Answer every line of the input.

    `overrides` are laid over each line's body. `dedupe` lets identical requests be computed once.
    `output_expires_seconds` counts from the creation of the output file.
    """

    output_expires_seconds: int | None = None
    dedupe: bool = False
    overrides: dict[str, Any] = Field(default_factory=dict)


def _kind(name: str, queue: Queue) -> Kind:
    return Kind(name, PREFIX, Batch, EVENTS, run_queue=queue)


KINDS: Final = (
    _kind("generation", Queue.GENERATE),
    _kind("embedding", Queue.EMBED),
    _kind("reranking", Queue.EMBED),
)
NAMES: Final = frozenset(kind.name for kind in KINDS)


class BatchRequest(BaseModel):
    """Checked already. `window_seconds` is the completion window's length; times are unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    input_file_id: str
    completion_window: str
    window_seconds: int
    priority: int = 0
    dedupe: bool = False
    output_expires_seconds: int | None = None
    metadata: dict[str, str] | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = None


def job_of(wanted: BatchRequest, project_id: str, *, not_before: float | None = None, **facts: Any) -> Job:
    """A job that is not submitted yet and has no input path. Its window begins when it may begin."""
    payload = Batch(dedupe=wanted.dedupe, output_expires_seconds=wanted.output_expires_seconds)
    created_at = now()
    labels: dict[str, Any] = {"labels": wanted.metadata} if wanted.metadata is not None else {}  # JSON null is not NULL
    return Job(
        id=new_id(PREFIX),
        project_id=project_id,
        kind=ENDPOINTS[wanted.endpoint],
        endpoint=wanted.endpoint,
        payload=payload.model_dump(mode="json"),
        input_file_id=wanted.input_file_id,
        priority=wanted.priority,
        window=wanted.completion_window,
        created_at=created_at,
        not_before=not_before,
        deadline=max(created_at, not_before or 0.0) + wanted.window_seconds,
        webhook_url=wanted.webhook_url,
        webhook_secret=wanted.webhook_secret,
        **labels,
        **facts,
    )
