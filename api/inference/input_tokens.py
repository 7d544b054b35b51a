"""How many tokens a response's input has, before it is asked for: counted by a worker of its model."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.http.bodies import Many
from api.http.resource import resource
from api.inference.asking import Asked, ask, whole
from api.inference.items import InputItem
from api.inference.turns import Named, said_before, unless_ours
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest
from jobs.inference import responses
from jobs.requests.endpoints import RESPONSES

router: APIRouter = resource("Responses")


class CountInputTokens(Asked):
    """The fields of a response that say what the model is shown."""

    input: str | Many[InputItem] | None = None
    previous_response_id: str | None = None
    conversation: Named = None


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post("/responses/input_tokens", response_model=InputTokens)
async def count_input_tokens(call: Call, request: Request, body: CountInputTokens) -> Response:
    """All that the model would be shown, what was said before included. Nothing is generated or kept."""
    question = await run_in_threadpool(_question, call, body)
    end, pieces = await ask(call, request, responses.COUNT_URL, question, stream=False, endpoint=RESPONSES)
    await pieces.aclose()
    return whole(end)


def _question(call: CallContext, body: CountInputTokens) -> dict[str, Any]:
    """Raises InvalidRequest, NotFound."""
    before = said_before(call, body.conversation, body.previous_response_id)
    asked = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input or []
    if not (before or asked):
        raise InvalidRequest("There is no input to count.", param="input", code="missing_required_parameter")
    return {**unless_ours(body.fields()), "input": [*before, *asked]}
