"""A conversation compacted: what users said in it, and a summary of all of it, to go on from.

    input, and all of `previous_response_id` ─▶ engine: a summary ─▶ the users' messages, and an item that holds it

Nothing is kept. The client sends what it gets in place of what it had.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.http.bodies import Many
from api.http.resource import resource
from api.inference.answered_once import as_json
from api.inference.asking import Asked, ask, whole
from api.inference.items import InputItem
from api.inference.response_schemas import ItemObject, show_item
from api.inference.turns import decoded, said_before, unsound
from api.shares import run_in_threadpool
from jobs.clock import now
from jobs.errors import InvalidRequest, NightmillError
from jobs.ids import new_id
from jobs.inference import compaction, responses
from jobs.requests.endpoints import RESPONSES

router: APIRouter = resource("Responses")

_TOKENS: Final = 512  # of a summary, at most
_WRITE: Final = (
    "Summarize the whole conversation above, so that another assistant can go on with it. Keep names, numbers, "
    "decisions, results of tools and open questions. Say who said what. Write the summary and nothing else."
)


class CompactResponse(Asked):
    """The fields that say what is compacted. `instructions` are part of what the model is shown."""

    input: str | Many[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None


class CompactedResponse(BaseModel):
    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[ItemObject]
    usage: dict[str, Any]


@router.post("/responses/compact", response_model=CompactedResponse)
async def compact_response(call: Call, request: Request, body: CompactResponse) -> Response:
    """The users' messages as they are, and one item for everything; an engine that has one summarizes it in parts."""
    items = await run_in_threadpool(_items, call, body)
    end, pieces = await ask(call, request, RESPONSES, _question(body, items), stream=False)
    await pieces.aclose()
    if end.status != 200:
        return whole(end)
    answer = decoded(end.body)
    if not responses.sound(answer) or not isinstance(answer.get("usage"), dict):
        raise unsound()
    compacted = CompactedResponse(
        id=new_id("resp_"), created_at=int(now()), output=_output(items, _summary(answer)), usage=answer["usage"]
    )
    return as_json(compacted.model_dump())


def _items(call: CallContext, body: CompactResponse) -> list[dict[str, Any]]:
    """All that was said. Raises InvalidRequest, NotFound."""
    asked = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input or []
    items = [*said_before(call, None, body.previous_response_id), *asked]
    if not items:
        raise InvalidRequest("There is nothing to compact.", param="input", code="missing_required_parameter")
    return items


def _question(body: CompactResponse, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    instructions = {} if body.instructions is None else {"instructions": body.instructions}
    return {
        "model": body.model,
        **instructions,
        "input": [*items, {"role": "user", "content": _WRITE}],
        "max_output_tokens": _TOKENS,
        "temperature": 0,
        "store": False,
        "context": {"strategy": "summarize"},  # what is too long for one request is why it is compacted
    }


def _summary(answer: Mapping[str, Any]) -> str:
    """Raises NightmillError."""
    messages = [item for item in answer["output"] if item["type"] == "message"]
    parts = [part for message in messages for part in message.get("content") or () if isinstance(part, dict)]
    text = "".join(str(part.get("text") or "") for part in parts if part.get("type") == "output_text").strip()
    if not text:
        raise NightmillError("The model wrote no summary.", code="engine_error")
    return text


def _output(items: Sequence[Mapping[str, Any]], summary: str) -> list[ItemObject]:
    said = [show_item(item) for item in items if item.get("role") == "user"]
    new = {"id": new_id("cmp_"), "type": compaction.ITEM, compaction.CONTENT: compaction.packed(summary)}
    shown = [*({**item, "id": item.get("id") or new_id("msg_")} for item in said), new]
    return [ItemObject.model_validate(item) for item in shown]
