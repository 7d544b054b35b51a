"""Responses: asked, answered whole, as a stream or in the background, kept, continued.

    input, and all of `previous_response_id` ─┬─▶ engine ─▶ under our id ─▶ kept (unless `store` is false) ─▶ client
                                background    └─▶ a job of one line, whose answer is kept

The engine keeps nothing. A stream's last event is sent once its response is kept, so that whoever has seen it can
go on from it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import kept_conversations, kept_responses
from api.asking import EITHER, KEEP_ALIVE, WHOLE, Asked, ask, queue_of, streamed, whole
from api.bodies import Body
from api.deps import Call, CallContext
from api.errors import describe
from api.fields import Metadata
from api.file_rows import check_space
from api.idempotency import Idempotent, Lease, Make, Once
from api.items import InputItem
from api.paging import After, Limit20, Order, Page, slice_of
from api.presenters.response import ItemObject, ResponseDeleted, as_input, show_item, show_items
from api.routing import resource
from api.validation import clip
from jobs import responses
from jobs.clock import now
from jobs.errors import DatabaseBusy, InvalidRequest, NightmillError, NotFound
from jobs.ids import new_id
from jobs.interactive import Piece
from jobs.responses import Kept

router: APIRouter = resource("Responses")

#: What we do ourselves; the rest is the engine's.
_OURS = frozenset({"background", "conversation", "metadata", "previous_response_id", "store", "stream"})
_ANSWERED = frozenset({"completed", "incomplete"})
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ConversationReference(Body):
    id: str


class CreateResponse(Asked):
    """The fields that are ours to read."""

    input: str | list[InputItem]
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: Metadata | None = None
    background: bool | None = None
    conversation: str | ConversationReference | None = None


@dataclass(slots=True)
class _Turn:
    """One response on its way: what the model is shown, and how the answer is made ours."""

    call: CallContext
    body: CreateResponse
    question: dict[str, Any]
    asked: list[dict[str, Any]]  # this time
    id: str = field(default_factory=lambda: new_id("resp_"))

    @property
    def store(self) -> bool:
        return self.body.store is not False

    @property
    def conversation(self) -> str | None:
        named = self.body.conversation
        return named.id if isinstance(named, ConversationReference) else named

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "conversation": {"id": self.conversation} if self.conversation else None,
            "previous_response_id": self.body.previous_response_id,
            "background": bool(self.body.background),
            "store": self.store,
            "metadata": self.body.metadata or {},
        }

    def ours(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return responses.ours(answer, self.facts)

    def kept(self, response: dict[str, Any]) -> Kept:
        return Kept(self.question, response)


@router.post("/responses", response_class=Response, responses=EITHER)
async def create_response(call: Call, request: Request, once: Idempotent, body: CreateResponse) -> Response:
    """One response, with `stream` its events as they come, with `background` at once and answered later."""
    turn = await run_in_threadpool(_turn, call, body)
    if body.background:
        return await run_in_threadpool(_queued, turn, once)
    if body.stream:
        return await _streamed(turn, request)
    if not turn.store and not turn.conversation:
        answered = await _answered(turn, request)
        return answered if isinstance(answered, Response) else _json(answered)
    return await _kept_once(turn, request, once)


@router.get("/responses/{response_id}", response_class=Response, responses=WHOLE)
def retrieve_response(call: Call, response_id: str, stream: bool = False) -> Response:
    """A response that is kept, as far as it has come."""
    if stream:
        message = "A response cannot be streamed again."
        raise InvalidRequest(message, param="stream", code="unsupported_value")
    return _json(kept_responses.load(call, response_id).response)


@router.delete("/responses/{response_id}")
def delete_response(call: Call, response_id: str) -> ResponseDeleted:
    """Forget a response. What continued it goes on by itself."""
    kept_responses.forget(call, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/responses/{response_id}/cancel", response_class=Response, responses=WHOLE)
def cancel_response(call: Call, response_id: str) -> Response:
    """Only what runs in the background can be cancelled: whoever waits for an answer hangs up."""
    return _json(kept_responses.cancel(call, response_id).response)


@router.get("/responses/{response_id}/input_items")
def list_input_items(
    call: Call,
    response_id: str,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    include: Annotated[list[str] | None, Query(alias="include[]")] = None,  # noqa: ARG001 (OpenAI's; nothing to add)
) -> Page[ItemObject]:
    """What the model was shown, earlier turns included."""
    items = show_items(response_id, kept_responses.load(call, response_id).items)
    return slice_of([ItemObject.model_validate(item) for item in items], after=after, limit=limit, order=order)


def _turn(call: CallContext, body: CreateResponse) -> _Turn:
    """Raises InvalidRequest, NotFound, StorageFull."""
    if body.conversation and (body.background or body.previous_response_id):
        other = "previous_response_id" if body.previous_response_id else "background"
        message = f"'conversation' cannot be given together with '{other}'."
        raise InvalidRequest(message, param=other, code="mutually_exclusive_parameters")
    if body.background and (body.stream or body.store is False):
        wrong = "stream" if body.stream else "store"
        message = "In the background a response is kept, and not streamed."
        raise InvalidRequest(message, param=wrong, code="unsupported_value")
    _check_cache(body)
    if body.store is not False or body.conversation:
        check_space(call, 0)
    asked = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    question = {name: value for name, value in body.fields().items() if name not in _OURS}
    question["store"] = False  # an engine that could keep it is not to
    turn = _Turn(call, body, question, asked)
    if turn.conversation:
        before = [as_input(item) for item in kept_conversations.load(call, turn.conversation).items]
    else:
        before = _before(call, body.previous_response_id)
    turn.question["input"] = [*before, *asked]
    return turn


def _check_cache(body: CreateResponse) -> None:
    """An answer that is given again is one of an engine alone; the rest of `cache` a worker checks."""
    if body.fields().get("cache") in (None, False):
        return
    given = {
        "store": body.store is not False,
        "background": body.background,
        "conversation": body.conversation,
        "previous_response_id": body.previous_response_id,
        "stream": body.stream,
    }
    for name, wrong in given.items():
        if wrong:
            needs = "it needs 'store' to be false" if name == "store" else f"it cannot be given together with '{name}'"
            raise InvalidRequest(f"Invalid 'cache': {needs}.", param="cache", code="invalid_value")


def _before(call: CallContext, previous: str | None) -> list[Any]:
    """What was said until then. Raises InvalidRequest."""
    if previous is None:
        return []
    try:
        kept = kept_responses.load(call, previous)
    except NotFound as error:
        message = f"Previous response with id '{clip(previous)}' not found."
        raise InvalidRequest(message, param="previous_response_id", code="previous_response_not_found") from error
    status = kept.response.get("status", "completed")
    if status not in _ANSWERED:
        message = f"Previous response '{previous}' is {status}."
        raise InvalidRequest(message, param="previous_response_id", code="invalid_state")
    return [*kept.items, *kept.response["output"]]


def _queued(turn: _Turn, once: Once) -> Response:
    """Once for each Idempotency-Key."""
    with turn.call.db.read() as session:
        queue_of(session, turn.call, responses.URL, turn.body.model)  # what nobody will ever serve is refused now
    fields = turn.body.fields()
    if once.replay(fields) is not None:
        return _replayed(turn, once)
    make = kept_responses.prepare_job(turn.call, turn.kept(_begun(turn)), once.key)
    reference = msgspec.json.decode(bytes(once.run(fields, make).body))
    return _json(kept_responses.load(turn.call, reference["id"]).response)


def _begun(turn: _Turn) -> dict[str, Any]:
    """What is known of a response before anybody has worked on it; its defaults are OpenAI's."""
    asked = turn.question
    return {
        **turn.facts,
        "object": "response",
        "created_at": int(now()),
        "status": "queued",
        "model": turn.body.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "temperature": asked.get("temperature"),
        "text": asked.get("text", {"format": {"type": "text"}}),
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_p": asked.get("top_p"),
        "truncation": asked.get("truncation", "disabled"),
        "usage": None,
    }


async def _answered(turn: _Turn, request: Request) -> dict[str, Any] | Response:
    """The response, or the engine's refusal."""
    end, pieces = await ask(turn.call, request, responses.URL, turn.question, stream=False)
    await pieces.aclose()
    if end.status != 200:
        return whole(end)
    answer = _decoded(end.body)
    if not responses.sound(answer):
        raise _unsound()
    return turn.ours(answer)


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.MsgspecError as error:
        raise _unsound() from error


def _unsound() -> NightmillError:
    return NightmillError("The engine's answer is no response.", code="engine_error")


async def _kept_once(turn: _Turn, request: Request, once: Once) -> Response:
    """Answered and kept, once for each Idempotency-Key."""
    if once.key and not turn.store:
        message = "With an Idempotency-Key and a conversation a response is kept."
        raise InvalidRequest(message, param="store", code="unsupported_value")
    async with once.leased() as lease, _beating(lease, turn.call.config.beat_seconds):
        if lease.kept is not None:
            return await run_in_threadpool(_replayed, turn, once)
        answered = await _answered(turn, request)
        if isinstance(answered, Response):
            await run_in_threadpool(lease.drop)
            return answered
        await run_in_threadpool(_keep, turn, answered, partial(lease.complete, turn.body.fields()))
        return _json(answered)


def _keep(turn: _Turn, response: dict[str, Any], run: Callable[[Make], object]) -> None:
    """What is to be kept of it, in one transaction, which `run` runs."""
    make: Make = kept_responses.prepare(turn.call, turn.kept(response)) if turn.store else _nothing(turn)
    if turn.conversation is None:
        run(make)
        return

    def commit(apply: Callable[[Session], None], new: object) -> None:  # noqa: ARG001
        def both(session: Session) -> BaseModel:
            apply(session)
            return make(session)

        run(both)

    said = [show_item(item) for item in (*turn.asked, *response["output"])]
    kept_conversations.add(turn.call, turn.conversation, said, commit)


def _nothing(turn: _Turn) -> Make:
    def told(session: Session) -> BaseModel:
        turn.call.record(session, "conversation.items.create", str(turn.conversation))
        return kept_responses.Reference(id=turn.id)

    return told


def _replayed(turn: _Turn, once: Once) -> Response:
    """What the key's first request made: the key remembers its id alone. Raises NotFound once that is deleted."""
    said = once.replay(turn.body.fields())
    assert said is not None, "the key was kept a moment ago"
    reference = msgspec.json.decode(bytes(said.body))
    return _json(kept_responses.load(turn.call, reference["id"]).response, replayed=True)


@asynccontextmanager
async def _beating(lease: Lease, seconds: float) -> AsyncIterator[None]:
    """The key stays ours for as long as the model takes."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(seconds)
            with suppress(DatabaseBusy):  # the next one may come in time
                await lease.beat()

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)  # a key that was lost is found lost by `complete`


async def _streamed(turn: _Turn, request: Request) -> Response:
    first, pieces = await ask(turn.call, request, responses.URL, turn.question, stream=True)
    if first.kind == "end":
        await pieces.aclose()
        if first.status == 200:  # it has answered, but not as a stream
            raise _unsound()
        return whole(first)
    return streamed(_events(turn, first, pieces))


async def _events(turn: _Turn, first: Piece, pieces: AsyncGenerator[Piece]) -> AsyncIterator[bytes]:
    """Server-sent events with their names, as OpenAI writes them; there is no `[DONE]`."""
    async with aclosing(pieces):
        number = 1  # of the event that comes next
        try:
            yield _event(await _made_ours(turn, first))
            async for piece in pieces:
                number += piece.kind == "chunk"
                if piece.kind == "chunk":
                    yield _event(await _made_ours(turn, piece))
                elif piece.kind != "end":
                    yield KEEP_ALIVE
                elif piece.body:
                    yield _event(_error(_decoded(piece.body), number))
        except NightmillError as error:  # the status was sent long ago
            yield _event(_error(describe(error), number))


async def _made_ours(turn: _Turn, piece: Piece) -> dict[str, Any]:
    """Raises NightmillError for what is no event."""
    event = _decoded(piece.body)
    if not isinstance(event, dict):
        raise _unsound()
    last = event.get("type") in _LAST
    if last and not responses.sound(event.get("response")):
        raise _unsound()
    if isinstance(event.get("response"), dict):
        event["response"] = turn.ours(event["response"])
        if last and (turn.store or turn.conversation):
            await run_in_threadpool(_keep, turn, event["response"], turn.call.in_one_write)
    return event


def _error(told: Any, number: int) -> dict[str, Any]:
    error = told.get("error") if isinstance(told, dict) else None
    error = error if isinstance(error, dict) else {"message": "The engine gave no answer.", "code": "engine_error"}
    said = {name: error.get(name) for name in ("code", "message", "param")}
    return {"type": "error", **said, "sequence_number": number}


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event.get("type", "message")).encode(), msgspec.json.encode(event))


def _json(body: Mapping[str, Any], *, replayed: bool = False) -> Response:
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)
