"""Chat completions that are to be kept (`store`): answered whole or as a stream, kept before the client has its end.

    body ─▶ engine, which keeps nothing ─┬─▶ under our id ─▶ kept ─▶ client
                                         └─▶ chunks, under our id, put together at the end ─▶ kept ─▶ [DONE]

What a client hangs up on, what is refused and what breaks leaves nothing.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from api import kept_completions
from api.answered_once import answered_once
from api.asking import KEEP_ALIVE, Asked, ask, streamed, whole
from api.chunks import Chunks
from api.deps import CallContext
from api.errors import describe
from api.fields import Metadata
from api.file_rows import check_space
from api.idempotency import Make, Once
from jobs import completions
from jobs.errors import InvalidRequest, NightmillError
from jobs.ids import new_id
from jobs.interactive import Piece
from jobs.kept import Kept

_OURS = frozenset({"metadata", "store"})


class ChatCompletionRequest(Asked):
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None


@dataclass(slots=True)
class Chat:
    """One on its way."""

    call: CallContext
    body: ChatCompletionRequest
    id: str = field(default_factory=lambda: new_id(completions.PREFIX))
    question: dict[str, Any] = field(init=False)  # as the engine is asked: one that could keep it is not to

    def __post_init__(self) -> None:
        self.question = {name: value for name, value in self.body.fields().items() if name not in _OURS}

    def ours(self, answer: Any) -> dict[str, Any]:
        """Raises NightmillError for what is no completion."""
        if not completions.sound(answer):
            raise _unsound()
        return completions.ours(answer, self.id, self.body.metadata)

    def keep(self, answer: dict[str, Any], run: Callable[[Make], object]) -> None:
        """In one transaction, which `run` runs."""
        kept = Kept(self.question, answer)
        run(kept_completions.prepare(self.call, kept, self.body.model, self.body.metadata or {}))


async def answer(
    call: CallContext, request: Request, once: Once, body: ChatCompletionRequest, seconds: int | None
) -> Response:
    """Whole, once for each Idempotency-Key, or a stream. Raises InvalidRequest, StorageFull."""
    if body.fields().get("cache") not in (None, False):
        raise InvalidRequest("Invalid 'cache': it needs 'store' to be false.", param="cache", code="invalid_value")
    if seconds is not None:
        message = "A stream that can be resumed is not stored: leave out 'store'."
        raise InvalidRequest(message, param="X-Nightmill-Resume", code="unsupported_value")
    await run_in_threadpool(check_space, call, 0)
    chat = Chat(call, body)
    if body.stream:
        return await _streamed(chat, request)
    return await answered_once(once, body.fields(), partial(_answered, chat, request), chat.keep, partial(_kept, call))


def _kept(call: CallContext, completion_id: str) -> dict[str, Any]:
    """Raises NotFound once it is deleted."""
    return kept_completions.load(call, completion_id).response


async def _answered(chat: Chat, request: Request) -> dict[str, Any] | Response:
    """The completion, or the engine's refusal."""
    end, pieces = await ask(chat.call, request, completions.URL, chat.question, stream=False)
    await pieces.aclose()
    return chat.ours(_decoded(end.body)) if end.status == 200 else whole(end)


async def _streamed(chat: Chat, request: Request) -> Response:
    """A stream, or the engine's refusal. What it costs is kept too, and only told to whoever asks for it."""
    options = chat.question.get("stream_options") or {}
    costs = {"stream_options": {**options, "include_usage": True}} if isinstance(options, dict) else {}
    first, pieces = await ask(chat.call, request, completions.URL, {**chat.question, **costs}, stream=True)
    if first.kind == "end":
        await pieces.aclose()
        if first.status == 200:  # it has answered, but not as a stream
            raise _unsound()
        return whole(first)
    shown = _Shown(chat, usage=isinstance(options, dict) and bool(options.get("include_usage")))
    return streamed(_events(shown, first, pieces), first.at)


async def _events(shown: "_Shown", first: Piece, pieces: AsyncGenerator[Piece]) -> AsyncIterator[bytes]:
    """Server-sent events as OpenAI writes them; the last one, `[DONE]`, once the completion is kept."""
    async with aclosing(pieces):
        try:
            if event := shown.chunk(first):
                yield event
            async for piece in pieces:
                if event := await shown.event(piece):
                    yield event
        except NightmillError as error:  # the status was sent long ago
            yield _event(msgspec.json.encode(describe(error)))


class _Shown:
    """The pieces of a stream as its client sees them; with or without its usage."""

    def __init__(self, chat: Chat, *, usage: bool) -> None:
        self._chat, self._usage = chat, usage
        self._chunks = Chunks()

    async def event(self, piece: Piece) -> bytes:
        if piece.kind == "chunk":
            return self.chunk(piece)
        if piece.kind != "end":
            return KEEP_ALIVE
        if not piece.body:
            await run_in_threadpool(self._keep)
        return _event(piece.body or b"[DONE]")

    def chunk(self, piece: Piece) -> bytes:
        """Empty where there is nothing to show. Raises NightmillError for what is no chunk."""
        chunk = _decoded(piece.body)
        if not isinstance(chunk, dict):
            raise _unsound()
        if "choices" in chunk:
            chunk["id"] = self._chat.id
        told = chunk if self._usage else {name: value for name, value in chunk.items() if name != "usage"}
        hidden = not self._usage and chunk.get("usage") is not None and chunk.get("choices") == []
        event = b"" if hidden else _event(msgspec.json.encode(told))
        self._chunks.add(chunk)
        return event

    def _keep(self) -> None:
        """Nothing where it told an error, which the client has seen. Raises NightmillError where it just stopped."""
        if self._chunks.broken:
            return
        answer = self._chunks.whole()
        if answer is None:
            raise _unsound()
        self._chat.keep(self._chat.ours(answer), self._chat.call.in_one_write)


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.MsgspecError as error:
        raise _unsound() from error


def _unsound() -> NightmillError:
    return NightmillError("The engine's answer is no chat completion.", code="engine_error")
