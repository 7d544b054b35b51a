"""Requests of interactive clients that name a prompt: resolved once, before anything else looks at their fields."""

from typing import Any, TypeVar

import msgspec
from pydantic import Field, model_validator

from api.deps import CallContext
from api.http.bodies import validate_fields
from api.inference.interactive import InferenceRequest
from jobs.errors import InvalidRequest
from jobs.prompts import versions
from jobs.prompts.resolution import PromptReference

_FROM_PROMPT = ("model", "messages")


class PromptableRequest(InferenceRequest):
    """A request that may name a prompt, from which it then has the fields that it lacks."""

    model: str = Field(default="", min_length=1, description="Required without a `prompt` that names one.")
    prompt: PromptReference | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        fields = body.items() if isinstance(body, dict) else ()
        return {k: v for k, v in fields if v is not None or k not in _FROM_PROMPT} if fields else body


class UsedPrompt(msgspec.Struct, frozen=True):
    """The prompt of a request as its answer names it, and the number of messages that the prompt has put first."""

    public: dict[str, Any]
    messages: int


B = TypeVar("B", bound=PromptableRequest)


def resolve_prompt(call: CallContext, endpoint: str, body: B) -> tuple[B, UsedPrompt | None]:
    """Return a request without its prompt, and the prompt where it names one. Raises InvalidRequest, NotFound."""
    reference, used = body.prompt, None
    if reference is not None:
        with call.db.read() as session:
            prompt = versions.resolve(session, call.project_id, reference)
        fields = prompt.apply(endpoint, body.fields(), reference.variables)
        body = validate_fields(type(body), fields)
        used = UsedPrompt(prompt.to_public(reference.variables), len(prompt.content["messages"]))
    for name in _FROM_PROMPT:
        if getattr(body, name, name) in ("", []):
            message = f"Missing required parameter: '{name}'."
            raise InvalidRequest(message, param=name, code="missing_required_parameter")
    return body, used
