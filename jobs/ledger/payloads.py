"""What each kind of job is asked to do: frozen, validated by the API, parsed again by the worker."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Payload(BaseModel):
    """The base of every kind's payload."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Batch(Payload):
    """Kinds `generation`, `embedding` and `reranking`, and with one line `response`: answer every line of the input.

    `overrides` are laid over each line's body. `dedupe` lets identical requests be computed once.
    `output_expires_seconds` counts from the creation of the output file.
    """

    output_expires_seconds: int | None = None
    dedupe: bool = False
    overrides: dict[str, Any] = Field(default_factory=dict)


class Response(Batch):
    """Kind `response`. `stream`: its events are told while it is answered."""

    stream: bool = False


class Ingestion(Payload):
    """Kind `ingestion`: bring files into a vector store. Which ones say the rows of `vector_store_file`, by line.

    `index_id` is the one of the store's indexes that they go into, unless it is the store's own row. With `beside` no
    client has asked for it, and none is told of its files. With `source_id` they are what a source has that the store
    has not: planning finds that out; with `again` also what it has failed to read before.
    """

    store_id: str
    index_id: str | None = None
    beside: bool = False
    source_id: str | None = None
    again: bool = False


def index_of(payload: Mapping[str, Any]) -> str:
    """The index that an ingestion's files go into."""
    return str(payload.get("index_id") or payload["store_id"])


#: The endpoints a batch may name, and the kind of job each makes.
ENDPOINTS: dict[str, str] = {
    "/v1/responses": "generation",
    "/v1/chat/completions": "generation",
    "/v1/completions": "generation",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "reranking",
}

#: What OpenAI calls each terminal state of a batch; these events go to webhooks.
BATCH_EVENTS: dict[str, str] = {
    "succeeded": "batch.completed",
    "failed": "batch.failed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}

#: Of a response in the background. One that was cut short is `response.incomplete` instead of completed.
RESPONSE_EVENTS: dict[str, str] = {
    "succeeded": "response.completed",
    "failed": "response.failed",
    "expired": "response.failed",
    "cancelled": "response.cancelled",
}
#: Of files that were brought into a vector store together.
FILE_BATCH_EVENTS: dict[str, str] = {
    "succeeded": "vector_store.file_batch.completed",
    "failed": "vector_store.file_batch.failed",
    "expired": "vector_store.file_batch.failed",
    "cancelled": "vector_store.file_batch.cancelled",
}
FILE_EVENTS: tuple[str, ...] = ("vector_store.file.completed", "vector_store.file.failed")
#: Of a sync of a source, told before the end of its file batch.
SOURCE_EVENTS: tuple[str, ...] = ("vector_store.source.synced", "vector_store.source.failed")
#: The kind of job that brings files into a vector store, and how the id of one begins that the client sees as a batch.
INGESTION, FILE_BATCH = "ingestion", "vsfb_"
BATCH_OUTPUT = "batch_output"  # the purpose of a file that a batch has made; it is called after the batch
#: By kind of job; those that are not named are batches.
TERMINAL_EVENTS: dict[str, dict[str, str]] = {"response": RESPONSE_EVENTS, INGESTION: FILE_BATCH_EVENTS}


#: Events of ours beside OpenAI's.
ENDPOINT_EVENTS: tuple[str, ...] = ("webhook_endpoint.disabled",)
EVENT_TYPES: tuple[str, ...] = (
    *BATCH_EVENTS.values(),
    *dict.fromkeys(RESPONSE_EVENTS.values()),
    "response.incomplete",
    *dict.fromkeys(FILE_BATCH_EVENTS.values()),
    *FILE_EVENTS,
    *SOURCE_EVENTS,
    *ENDPOINT_EVENTS,
)


def terminal_event(kind: str, job_id: str, state: str) -> str:
    """What is told when a job comes into a state; a single file's job is told as its file."""
    if kind == INGESTION and not job_id.startswith(FILE_BATCH):
        return f"job.{state}"
    return TERMINAL_EVENTS.get(kind, BATCH_EVENTS).get(state, f"job.{state}")
