"""What each kind of job is asked to do: frozen, validated by the API, parsed again by the worker."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Payload(BaseModel):
    """The base of every kind's payload."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Batch(Payload):
    """Kinds `generation`, `embedding` and, with one line, `response`: answer every line of the input.

    `overrides` are laid over each line's body. `dedupe` lets identical requests be computed once.
    `output_expires_seconds` counts from the creation of the output file.
    """

    output_expires_seconds: int | None = None
    dedupe: bool = False
    overrides: dict[str, Any] = Field(default_factory=dict)


#: The endpoints a batch may name, and the kind of job each makes.
ENDPOINTS: dict[str, str] = {
    "/v1/responses": "generation",
    "/v1/chat/completions": "generation",
    "/v1/completions": "generation",
    "/v1/embeddings": "embedding",
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
#: By kind of job; those that are not named are batches.
TERMINAL_EVENTS: dict[str, dict[str, str]] = {"response": RESPONSE_EVENTS}

#: Events of ours beside OpenAI's.
ENDPOINT_EVENTS: tuple[str, ...] = ("webhook_endpoint.disabled",)
EVENT_TYPES: tuple[str, ...] = (
    *BATCH_EVENTS.values(),
    *dict.fromkeys(RESPONSE_EVENTS.values()),
    "response.incomplete",
    *ENDPOINT_EVENTS,
)
