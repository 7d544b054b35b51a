"""Answers for a client who waits: chat completions, completions and embeddings, whole or as a stream.

The body goes to the engine as it is; what is wrong with it the engine says, in OpenAI's shape. Batches wait meanwhile:
these requests are served first, on the same engine.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.deps import Call, CallContext
from api.errors import describe
from api.routing import resource
from api.validation import clip
from jobs import fleet, pauses, placement
from jobs.clock import now
from jobs.errors import (
    InvalidRequest,
    NightmillError,
    NotFound,
    NoWorker,
    PermissionDenied,
    RequestTimeout,
    Unavailable,
    WorkerLost,
)
from jobs.ids import new_id
from jobs.interactive import Piece, Question

router: APIRouter = resource("Generation")

_CHAT, _COMPLETION, _EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_EVENT_STREAM = "text/event-stream"
_WHOLE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
_EITHER: dict[int | str, dict[str, Any]] = {
    200: {"content": {**_WHOLE[200]["content"], _EVENT_STREAM: {"schema": {"type": "string"}}}}
}


class _Asked(BaseModel):
    """What all have. The rest is the engine's to judge."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    model: str = Field(min_length=1)

    def fields(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)


class _Streamed(_Asked):
    stream: bool | None = None


class ChatCompletionRequest(_Streamed):
    messages: list[dict[str, Any]] = Field(min_length=1)


class CompletionRequest(_Streamed):
    prompt: str | list[Any]


class EmbeddingRequest(_Asked):
    input: str | list[Any]


@router.post("/chat/completions", response_class=Response, responses=_EITHER)
async def create_chat_completion(call: Call, request: Request, body: ChatCompletionRequest) -> Response:
    """One chat completion, or with `stream` its chunks as server-sent events."""
    return await _answer(call, request, _CHAT, body, stream=bool(body.stream))


@router.post("/completions", response_class=Response, responses=_EITHER)
async def create_completion(call: Call, request: Request, body: CompletionRequest) -> Response:
    """One completion, or with `stream` its chunks as server-sent events."""
    return await _answer(call, request, _COMPLETION, body, stream=bool(body.stream))


@router.post("/embeddings", response_class=Response, responses=_WHOLE)
async def create_embedding(call: Call, request: Request, body: EmbeddingRequest) -> Response:
    """The vectors of one or more inputs."""
    return await _answer(call, request, _EMBEDDING, body, stream=False)


async def _answer(call: CallContext, request: Request, url: str, body: _Asked, *, stream: bool) -> Response:
    queue = await run_in_threadpool(_queue, call, url, body.model)
    question = Question(
        id=new_id("req_"),
        url=url,
        body=msgspec.json.encode(body.fields()),
        tenant=call.project_id,
        deadline=now() + call.config.interactive_seconds,
        stream=stream,
    )
    pieces = _awaited(call, request, queue, question, body.model)
    first = await anext(pieces)
    if first.kind == "end" and first.body:
        await pieces.aclose()
        return _whole(first)
    return _events(first, pieces)


def _queue(call: CallContext, url: str, model: str) -> str:
    """Where the model runs. Raises NotFound, InvalidRequest, PermissionDenied, NoWorker, Unavailable."""
    with call.db.read() as session:
        try:
            queue = placement.queue_of(session, call.config, model, endpoint=url, project_id=call.project_id)
        except placement.NotYet:
            raise NoWorker from None
        except placement.NotServed as refusal:
            raise _refused(refusal, model) from None
        off = pauses.paused(session)
        scopes = ((pauses.Scope.QUEUE, queue), (pauses.Scope.MODEL, model), (pauses.Scope.PROJECT, call.project_id))
        if any(name in off.of(scope) for scope, name in scopes):
            raise Unavailable("The operator has paused this model.", code="paused")
    if not _served(call, queue, model):
        raise NoWorker(f"No live worker serves the model '{clip(model)}' now.")
    return queue


def _refused(refusal: placement.NotServed, model: str) -> NightmillError:
    if refusal.code == "model_not_found":
        return NotFound(f"The model `{clip(model)}` does not exist.", param="model", code=refusal.code)
    kind = PermissionDenied if refusal.code == "external_model_not_allowed" else InvalidRequest
    return kind(str(refusal), param="model", code=refusal.code)


def _served(call: CallContext, queue: str, model: str) -> bool:
    alias = call.services.registry().aliases.get(model, "")
    with call.db.read() as session:
        return any(fleet.serves(session, queue, name) for name in (model, alias) if name)


async def _awaited(
    call: CallContext, request: Request, queue: str, question: Question, model: str
) -> AsyncGenerator[Piece]:
    """Chunks and the end, for as long as the client is there. Raises RequestTimeout, and what `Lines.ask` raises."""

    async def served() -> bool:
        await _look(call, request, question)
        return await run_in_threadpool(_served, call, queue, model)

    async with aclosing(call.services.lines.ask(queue, question, served)) as pieces:
        async for piece in pieces:
            if piece.kind in ("chunk", "end"):
                yield piece
            else:
                await _look(call, request, question)


async def _look(call: CallContext, request: Request, question: Question) -> None:
    """Is it still worth while to wait? Raises RequestTimeout, WorkerLost."""
    if await request.is_disconnected():
        raise RequestTimeout("The client has closed the connection.", code="client_left")
    if call.services.stopping.is_set():
        raise WorkerLost("This server is going down. Ask again.")
    if now() > question.deadline:
        raise RequestTimeout("The model did not answer in time.", code="timeout")


def _whole(end: Piece) -> Response:
    headers = {} if end.retry_after is None else {"Retry-After": str(max(1, round(end.retry_after)))}
    return Response(end.body, end.status, headers, media_type="application/json")


def _events(first: Piece, pieces: AsyncGenerator[Piece]) -> StreamingResponse:
    """Server-sent events as OpenAI writes them: `data: {chunk}`, the last one `[DONE]`."""

    async def written() -> AsyncIterator[bytes]:
        async with aclosing(pieces):
            yield _event(first)
            try:
                async for piece in pieces:
                    yield _event(piece)
            except NightmillError as error:  # the status was sent long ago
                yield b"data: %b\n\n" % msgspec.json.encode(describe(error))

    return StreamingResponse(written(), media_type=_EVENT_STREAM, headers={"Cache-Control": "no-cache"})


def _event(piece: Piece) -> bytes:
    return b"data: %b\n\n" % (piece.body or b"[DONE]")
