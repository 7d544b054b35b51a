"""Run an engine on a thread of its own, because building it blocks the event loop (vLLM: half a minute)."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from workers.engines.port import (
    Adapter,
    AdapterEngine,
    AdapterRefused,
    Answer,
    BatchLimited,
    Emit,
    Engine,
    Length,
    Passage,
    Phased,
    Request,
    Score,
)

T = TypeVar("T")


class OwnLoop:
    """An engine on a loop and thread of its own. `make` builds it in the thread: it may convert or download a model."""

    def __init__(self, names: Sequence[str], make: Callable[[], Engine]) -> None:
        self._names, self._make = tuple(names), make
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = asyncio.Lock()

    @property
    def models(self) -> tuple[str, ...]:
        return self._names

    def batch_limits(self, while_interactive: int) -> tuple[int, int] | None:
        engine: object = self._engine
        return engine.batch_limits(while_interactive) if isinstance(engine, BatchLimited) else None

    @property
    def phase(self) -> str:
        engine: object = self._engine
        return engine.phase if isinstance(engine, Phased) else "preparing the model's files"

    async def start(self) -> None:
        async with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="engine", daemon=True)
                self._thread.start()
            await self._run_on_loop(self._start())

    async def answer(self, request: Request) -> Answer:
        if self._engine is None:
            await self.start()
        assert self._engine is not None
        return await self._run_on_loop(self._engine.answer(request))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        if self._engine is None:
            await self.start()
        assert self._engine is not None
        home = asyncio.get_running_loop()

        async def back(event: bytes) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_emit(emit, event), home))

        return await self._run_on_loop(self._engine.stream(request, back))

    async def length(self, request: Request) -> Length | None:
        """Return the length of a prompt; None where the engine cannot count."""
        if self._engine is None:
            await self.start()
        count = getattr(self._engine, "length", None)
        return await self._run_on_loop(count(request)) if count else None

    @property
    def version(self) -> str:
        engine: object = self._engine
        return engine.version if isinstance(engine, AdapterEngine) else ""

    @property
    def adapters(self) -> int:
        engine: object = self._engine
        return engine.adapters if isinstance(engine, AdapterEngine) else 0

    async def score(self, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        """Return what the engine scores. Raises AdapterRefused where it takes no adapters."""
        if self._engine is None:
            await self.start()
        engine: object = self._engine
        if not isinstance(engine, AdapterEngine):
            raise AdapterRefused(f"The engine of {model} takes no adapters.")
        return await self._run_on_loop(engine.score(model, passages, adapter))

    async def close(self) -> None:
        async with self._starting:
            if self._loop is None or self._thread is None:
                return
            if self._engine is not None:
                await self._run_on_loop(self._engine.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join)
            self._engine = self._loop = self._thread = None

    async def _start(self) -> None:
        if self._engine is None:
            self._engine = self._make()
        await self._engine.start()

    async def _run_on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine's loop. Cancelling the caller cancels the coroutine."""
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


async def _emit(emit: Emit, event: bytes) -> None:
    await emit(event)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
