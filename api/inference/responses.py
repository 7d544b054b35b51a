"""Serve responses: answered whole, as a stream or in the background, stored, continued.

    input, and all of `previous_response_id` ─┬─▶ engine ─▶ new id ─▶ stored (unless `store` is false) ─▶ client
                                background    └─▶ a job of one line, whose answer is stored

Engines store nothing. The last event of a stream is sent after its response was stored, so that a client that has seen
it can continue from it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.http.bodies import Many, resource
from api.http.idempotency import Idempotent, Once
from api.http.paging import After, Limit20, Order, Page, page, slice_of
from api.inference import response_streams, stored_answers
from api.inference.interactive import (
    JSON_BODY,
    JSON_OR_STREAM,
    InferenceRequest,
    LastEventId,
    Resume,
    count_background,
    plain_response,
    stream_response,
    submit,
)
from api.inference.prompts import PromptableRequest, resolve_prompt
from api.inference.response_streams import follow
from api.inference.schemas import (
    InputItem,
    ItemObject,
    ResponseDeleted,
    ResponseObject,
    show_item,
    show_items,
)
from api.inference.stored_answers import answer_id_of, answer_once, json_response
from api.inference.targets import route_of, work_of
from api.inference.turns import (
    CreateResponse,
    Named,
    Turn,
    begin,
    decode_answer,
    earlier_items,
    engine_fields,
    initial_response,
    input_items,
    invalid_answer,
    keep,
)
from api.shares import run_in_threadpool
from jobs.clock import now
from jobs.errors import InvalidRequest, NightmillError, StreamsUnavailable
from jobs.ids import new_id
from jobs.inference import compaction, responses
from jobs.inference.stored import StoredAnswer
from jobs.requests.endpoints import RESPONSES

router: APIRouter = resource("Responses", area="responses")


@router.post("/responses", response_class=Response, responses=JSON_OR_STREAM)
async def create_response(
    call: Call,
    request: Request,
    once: Idempotent,
    body: CreateResponse,
    seconds: Resume = None,
    last: LastEventId = None,
) -> Response:
    """Create a response.

    With `stream` its events follow; with `background` it is returned at once and answered later.
    """
    if last is not None:
        return await response_streams.resume_events(call, request, last)
    if seconds is not None:
        response_streams.check_resumable(body)
    turn = await run_in_threadpool(begin, call, body)
    if body.background:
        await count_background(call, request, RESPONSES, turn.engine_body)
        queued, replayed = await run_in_threadpool(_enqueue, turn, once, body.fields())
        if body.stream:
            return stream_response(follow(call, request, queued, -1, results=turn.results))
        return json_response(turn.filter_results(queued.response), replayed=replayed)
    if body.stream:
        return await response_streams.answer(turn, request, seconds)
    if not turn.store and not turn.conversation:
        answered = await _answer_request(turn, request)
        return answered if isinstance(answered, Response) else json_response(answered)
    return await _answer_and_store(turn, request, once, body.fields())


@router.get("/responses")
def list_responses(
    request: Request,
    call: Call,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    model: Annotated[
        str | None, Query(max_length=255, description="As it was asked for, or as the answer names it.")
    ] = None,
) -> Page[ResponseObject]:
    """List stored responses, the newest first. `metadata[key]=value` selects, up to 16 times."""
    cursor = {"after": after, "limit": limit, "order": order}
    read = partial(stored_answers.read_response, call)
    answers, more = stored_answers.STORED_RESPONSES.page(call, request, model, read, cursor)
    return page(answers, more, _show)


@router.get("/responses/{response_id}", response_class=Response, responses=JSON_OR_STREAM)
async def retrieve_response(
    call: Call,
    request: Request,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, lt=1 << 53, description="The number of the last event seen.")] = -1,
    include: Annotated[list[str] | None, Query(alias="include[]")] = None,
) -> Response:
    """Return a stored response in its current state; with `stream` its events, past and future.

    The results of file searches are included where `include[]` names `file_search_call.results`.
    """
    stored_answer = await run_in_threadpool(stored_answers.load_response, call, response_id)
    results = responses.RESULTS in (include or ())
    if stream:
        return stream_response(follow(call, request, stored_answer, starting_after, results=results))
    return json_response(stored_answer.response if results else responses.drop_results(stored_answer.response))


@router.delete("/responses/{response_id}")
async def delete_response(call: Call, response_id: str) -> ResponseDeleted:
    """Delete a response. Responses that continued it stay."""
    await run_in_threadpool(stored_answers.delete_response, call, response_id)
    with suppress(StreamsUnavailable):  # the events expire
        await call.services.inference.delete_events(response_id)
    return ResponseDeleted(id=response_id)


@router.post("/responses/{response_id}/cancel", response_class=Response, responses=JSON_BODY)
def cancel_response(call: Call, response_id: str) -> Response:
    """Cancel a background response. Other requests are cancelled by closing the connection."""
    return json_response(responses.drop_results(stored_answers.cancel_response(call, response_id).response))


@router.get("/responses/{response_id}/input_items")
def list_input_items(
    call: Call,
    response_id: str,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    include: Annotated[list[str] | None, Query(alias="include[]")] = None,  # noqa: ARG001 (OpenAI's; nothing to add)
) -> Page[ItemObject]:
    """List the items that the model was shown, with those of earlier turns."""
    items = show_items(response_id, responses.items(stored_answers.load_response(call, response_id)))
    return slice_of(items, ItemObject.model_validate, after=after, limit=limit, order=order)


def _show(stored_answer: StoredAnswer) -> ResponseObject:
    return ResponseObject.model_validate(responses.drop_results(stored_answer.response))


def _enqueue(turn: Turn, once: Once, fields: dict[str, Any]) -> tuple[StoredAnswer, bool]:
    """Return the response, created once for each Idempotency-Key, and whether the key had created it before.

    `fields` are those that the client sent.
    """
    with turn.call.db.read() as session:
        work = work_of(turn.call, RESPONSES, turn.engine_body)
        route = route_of(session, turn.call, work)  # refuses one that nobody will ever serve
    replayed = once.replay(fields)
    if replayed is not None:
        return stored_answers.load_response(turn.call, answer_id_of(replayed)), True
    initial = initial_response(turn, route)
    model = route.model if route else None
    make = stored_answers.prepare_background(
        turn.call, turn.stored_answer(initial), once.key, stream=bool(turn.body.stream), model=model
    )
    return stored_answers.load_response(turn.call, answer_id_of(once.run(fields, make))), False


async def _answer_request(turn: Turn, request: Request) -> dict[str, Any] | Response:
    """Return the response, or the engine's refusal."""
    end, entries = await submit(turn.call, request, RESPONSES, turn.engine_body, stream=False)
    await entries.aclose()
    if end.status != 200:
        return plain_response(end)
    answer = decode_answer(end.body)
    if not responses.is_response(answer):
        raise invalid_answer()
    return turn.to_public(answer)


async def _answer_and_store(turn: Turn, request: Request, once: Once, fields: dict[str, Any]) -> Response:
    """Answer and store, once for each Idempotency-Key. `fields` are those that the client sent."""
    if once.key and not turn.store:
        message = "With an Idempotency-Key and a conversation a response is kept."
        raise InvalidRequest(message, param="store", code="unsupported_value")
    answer, load = partial(_answer_request, turn, request), partial(_load, turn.call)
    return await answer_once(once, fields, answer, partial(keep, turn), load, turn.filter_results)


def _load(call: CallContext, response_id: str) -> dict[str, Any]:
    """Load a stored response. Raises NotFound once it is deleted."""
    return stored_answers.load_response(call, response_id).response


class CountInputTokens(PromptableRequest):
    """The fields of a response that determine what the model is shown."""

    input: str | Many[InputItem] | None = None
    previous_response_id: str | None = None
    conversation: Named = None


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post("/responses/input_tokens", response_model=InputTokens)
async def count_input_tokens(call: Call, request: Request, body: CountInputTokens) -> Response:
    """Count the tokens of all that the model would be shown, with earlier turns. Nothing is generated or stored."""
    engine_body = await run_in_threadpool(_count_request, call, body)
    end, entries = await submit(call, request, responses.COUNT_URL, engine_body, stream=False, endpoint=RESPONSES)
    await entries.aclose()
    return plain_response(end)


def _count_request(call: CallContext, body: CountInputTokens) -> dict[str, Any]:
    """Return the request to count. Raises InvalidRequest, NotFound."""
    body, _ = resolve_prompt(call, RESPONSES, body)
    before, new_items = earlier_items(call, body.conversation, body.previous_response_id), input_items(call, body.input)
    if not (before or new_items):
        raise InvalidRequest("There is no input to count.", param="input", code="missing_required_parameter")
    return {**engine_fields(body.fields()), "input": [*before, *new_items]}


_TOKENS: Final = 512  # limit of a summary
_WRITE: Final = (
    "Summarize the whole conversation above, so that another assistant can go on with it. Keep names, numbers, "
    "decisions, results of tools and open questions. Say who said what. Write the summary and nothing else."
)


class CompactResponse(InferenceRequest):
    """The fields that determine what is compacted. `instructions` are part of what the model is shown."""

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
    """Return the users' messages, and one item with a summary of everything.

    An engine summarizes long input in parts.
    """
    items = await run_in_threadpool(_items, call, body)
    end, entries = await submit(call, request, RESPONSES, _summary_request(body, items), stream=False)
    await entries.aclose()
    if end.status != 200:
        return plain_response(end)
    answer = decode_answer(end.body)
    if not responses.is_response(answer) or not isinstance(answer.get("usage"), dict):
        raise invalid_answer()
    compacted = CompactedResponse(
        id=new_id("resp_"), created_at=int(now()), output=_output(items, _summary(answer)), usage=answer["usage"]
    )
    return json_response(compacted.model_dump())


def _items(call: CallContext, body: CompactResponse) -> list[dict[str, Any]]:
    """Return all items of the conversation. Raises InvalidRequest, NotFound."""
    items = [*earlier_items(call, None, body.previous_response_id), *input_items(call, body.input)]
    if not items:
        raise InvalidRequest("There is nothing to compact.", param="input", code="missing_required_parameter")
    return items


def _summary_request(body: CompactResponse, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    instructions = {} if body.instructions is None else {"instructions": body.instructions}
    return {
        "model": body.model,
        **instructions,
        "input": [*items, {"role": "user", "content": _WRITE}],
        "max_output_tokens": _TOKENS,
        "temperature": 0,
        "store": False,
        "context": {"strategy": "summarize"},  # compacted input is usually too long for one request
    }


def _summary(answer: Mapping[str, Any]) -> str:
    """Return the summary. Raises NightmillError."""
    messages = [item for item in answer["output"] if item["type"] == "message"]
    parts = [part for message in messages for part in message.get("content") or () if isinstance(part, dict)]
    text = "".join(str(part.get("text") or "") for part in parts if part.get("type") == "output_text").strip()
    if not text:
        raise NightmillError("The model wrote no summary.", code="engine_error")
    return text


def _output(items: Sequence[Mapping[str, Any]], summary: str) -> list[ItemObject]:
    user_items = [show_item(item) for item in items if item.get("role") == "user"]
    new = {"id": new_id("cmp_"), "type": compaction.ITEM, compaction.CONTENT: compaction.pack(summary)}
    shown = [*({**item, "id": item.get("id") or new_id("msg_")} for item in user_items), new]
    return [ItemObject.model_validate(item) for item in shown]
