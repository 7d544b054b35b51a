"""A response as the events of its stream: as it comes from the engine, and the rest of one that broke.

pieces ──▶ under our id ──▶ `id`, `event`, `data` ──▶ client
              └── the last one: the response is kept first, once, whoever shows it
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from api.deps import CallContext
from api.errors import describe
from api.inference import stored_responses
from api.inference.asking import KEEP_ALIVE, GoingDown, ask, named, resume, streamed, whole
from api.inference.turns import CreateResponse, Turn, decoded, keep, unsound
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest, NightmillError
from jobs.inference import responses
from jobs.inference.interactive import Piece
from jobs.inference.waiting import second
from jobs.requests.endpoints import RESPONSES


class _Shown(msgspec.Struct):
    """A turn, for whichever process shows the rest of its stream. The `input` of its body is `asked`."""

    id: str
    body: dict[str, Any]
    question: dict[str, Any]
    asked: list[dict[str, Any]]


def check_resumable(body: CreateResponse) -> None:
    """Raises InvalidRequest."""
    if body.store is False and body.conversation:  # nothing would tell whether its items were added already
        message = "With a conversation, a stream that can be resumed is kept."
        raise InvalidRequest(message, param="store", code="unsupported_value")
    if not body.stream:
        raise InvalidRequest("Only a stream can be resumed.", param="X-Nightmill-Resume", code="unsupported_value")
    if body.background:
        message = "What runs in the background goes on anyway."
        raise InvalidRequest(message, param="X-Nightmill-Resume", code="unsupported_value")


async def answer(turn: Turn, request: Request, seconds: int | None) -> Response:
    """A stream, or the engine's refusal."""
    shown = _packed(turn) if seconds else b""
    first, pieces = await ask(turn.call, request, RESPONSES, turn.question, stream=True, resume=seconds, shown=shown)
    if first.kind == "end":
        await pieces.aclose()
        if first.status == 200:  # it has answered, but not as a stream
            raise unsound()
        return whole(first)
    return streamed(_events(turn, pieces, first, resumable=bool(seconds)), first.at)


def _packed(turn: Turn) -> bytes:
    body = {name: value for name, value in turn.body.fields().items() if name != "input"}
    return msgspec.json.encode(_Shown(turn.id, body, turn.question, turn.asked))


async def resumed(call: CallContext, request: Request, last: str) -> Response:
    """What follows an event that the client has seen. Raises InvalidRequest, NotFound, StreamsAway."""
    kept, pieces = await resume(call, request, last, RESPONSES)
    shown = msgspec.json.decode(kept.shown, type=_Shown)
    body = CreateResponse.model_validate_json(msgspec.json.encode({**shown.body, "input": shown.asked}))
    turn = Turn(call, body, shown.question, shown.asked, shown.id)
    return streamed(_events(turn, pieces, resumable=True), last)


async def _events(
    turn: Turn, pieces: AsyncGenerator[Piece], first: Piece | None = None, *, resumable: bool
) -> AsyncIterator[bytes]:
    """Server-sent events with their names, as OpenAI writes them; there is no `[DONE]`."""
    number = 0  # of the event that comes next
    async with aclosing(pieces):
        try:
            async for piece in _from(first, pieces):
                at = piece.at if resumable else ""
                if piece.kind == "chunk":
                    event = await _made_ours(turn, piece, resumable=resumable)
                    number = event.get("sequence_number", number) + 1
                    yield _event(event, at)
                elif piece.kind != "end":
                    yield KEEP_ALIVE
                elif piece.body:
                    yield _event(_error(decoded(piece.body), number), at)
        except NightmillError as error:  # the status was sent long ago
            if not (resumable and isinstance(error, GoingDown)):  # else it just breaks off: the client comes back
                yield _event(_error(describe(error), number))


async def _from(first: Piece | None, others: AsyncGenerator[Piece]) -> AsyncIterator[Piece]:
    if first is not None:
        yield first
    async for piece in others:
        yield piece


async def _made_ours(turn: Turn, piece: Piece, *, resumable: bool) -> dict[str, Any]:
    """Raises NightmillError for what is no event."""
    event = decoded(piece.body)
    if not isinstance(event, dict):
        raise unsound()
    last = event.get("type") in responses.FINAL
    if last and not responses.sound(event.get("response")):
        raise unsound()
    if isinstance(event.get("response"), dict):
        event["response"] = turn.ours(event["response"], second(piece.at))  # however often it is told
        if last and (turn.store or turn.conversation):
            await run_in_threadpool(_keep, turn, event["response"], resumable=resumable)
    return turn.shown(event)


def _keep(turn: Turn, response: dict[str, Any], *, resumable: bool) -> None:
    """Nothing where another connection of its stream did."""
    if resumable:
        stored_responses.once(turn.call, turn.id, partial(keep, turn, response))
    else:
        keep(turn, response, turn.call.in_one_write)


def _error(told: Any, number: int) -> dict[str, Any]:
    error = told.get("error") if isinstance(told, dict) else None
    error = error if isinstance(error, dict) else {"message": "The engine gave no answer.", "code": "engine_error"}
    said = {name: error.get(name) for name in ("code", "message", "param")}
    return {"type": "error", **said, "sequence_number": number}


def _event(event: Mapping[str, Any], at: str = "") -> bytes:
    head = named(at) if at else b""
    kind = str(event.get("type", "message")).encode()
    return b"%bevent: %b\ndata: %b\n\n" % (head, kind, msgspec.json.encode(event))
