"""The common parts of all middleware: the base class, retries while an engine is busy, and sums of usage.

A request that has already cost tokens is sent again while the engine is busy, so that these tokens are not wasted.

first request  ── busy ──▶ EngineBusy: nothing is lost, and the request is retried without a limit
further request ── busy ──▶ wait, retry, retry ──▶ EngineFault: it counts as a failed attempt
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

from workers.engines.port import Answer, Emit, Engine, EngineBusy, EngineFault, Request, Usage, refusal

_TIMES: Final = 5
_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 5.0
_BUSY: Final = refusal(503, "The engine stayed busy with a part of this request. Ask again.", code="engine_busy")
_TOTALS: Final = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
_DETAILS: Final = {
    "prompt_tokens_details": "cached_tokens", "completion_tokens_details": "reasoning_tokens",
    "input_tokens_details": "cached_tokens", "output_tokens_details": "reasoning_tokens",
}  # fmt: skip


#: Ask something that answers as an engine does: whole, or in pieces to an emit.
Ask = Callable[[Request, Emit | None], Awaitable[Answer]]


async def ask_model(request: Request, emit: Emit | None, ask: Ask) -> Answer:
    """Ask for the model under the name that the request has."""
    return await ask(request, emit)


async def keep_request(request: Request) -> Request | Answer:
    """Return the request as it is."""
    return request


class Middleware:
    """An engine that stands before another engine and handles the requests that `concerns` selects.

    Every other request goes to the inner engine directly.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def models(self) -> tuple[str, ...]:
        return self.engine.models

    async def start(self) -> None:
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.close()

    def answer(self, request: Request) -> Coroutine[Any, Any, Answer]:
        return self.handle(request) if self.concerns(request) else self.engine.answer(request)

    def stream(self, request: Request, emit: Emit) -> Coroutine[Any, Any, Answer]:
        if self.concerns(request):
            return self.handle_stream(request, emit)
        return self.engine.stream(request, emit)

    def concerns(self, request: Request) -> bool:
        """Return whether this middleware handles `request`."""
        raise NotImplementedError

    async def handle(self, request: Request) -> Answer:
        """Answer a request that this middleware handles."""
        raise NotImplementedError

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        """Answer a request that this middleware handles as a stream; by default the inner engine does."""
        return await self.engine.stream(request, emit)


async def retry_while_busy(ask: Callable[[], Awaitable[Answer]], paid: Callable[[], Usage | None]) -> Answer:
    """Call `ask` again while the engine is busy, if `paid` says that the request has cost tokens already.

    Raises:
        EngineFault: the engine stayed busy; and whatever `ask` raises.
    """
    attempts_left = _TIMES
    while True:
        try:
            return await ask()
        except EngineBusy as busy:
            spent, attempts_left = paid(), attempts_left - 1
            if spent is None:
                raise
            if not attempts_left:
                raise EngineFault("The engine stayed busy.", replace(_BUSY, usage=spent)) from busy
            pause = min(busy.retry_after or _PAUSE, _MAX_PAUSE)
        await asyncio.sleep(pause)


def add_usage(shown: Mapping[str, Any], added: Usage) -> dict[str, Any]:
    """Return the `usage` object of a response with the tokens of `added` in each of its counts."""
    return {name: _count(name, value, added) for name, value in shown.items()}


def _count(name: str, value: Any, added: Usage) -> Any:
    if isinstance(value, int):
        return value + int(getattr(added, _TOTALS.get(name, name), 0))
    inner = _DETAILS.get(name)
    if inner and isinstance(value, dict) and isinstance(value.get(inner), int):
        return value | {inner: value[inner] + getattr(added, inner)}
    return value
