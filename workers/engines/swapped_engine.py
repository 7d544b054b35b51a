"""One engine at a time for tuned models with weights of their own: it is swapped when the one that runs is idle.

    request ── its model is loaded ───────────────────────────────────▶ runs with the others
       └── is not ── nothing runs, or the loaded model's turn is over ──▶ running ones end ──▶ close, open, check

While others wait, a model that is loaded keeps the engine for a turn at most: then its new requests wait behind them.
A model that cannot be opened is tried again, later each time; after some tries it is refused for a while.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from jobs.fleet.models_file import ANY_MODEL
from jobs.timings import Timings
from workers.engines import probes
from workers.engines.foreign_errors import ForeignCall
from workers.engines.port import (
    Adapter,
    AdapterEngine,
    AdapterRefused,
    Answer,
    BatchLimited,
    Emit,
    Engine,
    EngineBusy,
    EngineError,
    Length,
    Passage,
    Phased,
    Request,
    Score,
    unknown_model,
)

log = logging.getLogger(__name__)
_TRIES: Final = 3  # to open a model, before it is refused
_REMEMBERED: Final = 256  # models that could not be opened

#: Make the engine of the model `base` for whole weights.
Make = Callable[[str, Adapter], Engine]


@dataclass(frozen=True, slots=True)
class _Failure:
    """The reason why a model could not be opened, how often that happened, and when it is tried again.

    A model that was refused is tried again after the `trial` that it failed.
    """

    error: Exception
    times: int
    until: float
    trial: int

    def error_of(self, now: float, trial: int) -> EngineError | None:
        """Return the error of a request for the model; None when the model is to be tried."""
        if isinstance(self.error, AdapterRefused):
            if trial != self.trial:
                return None
            return AdapterRefused(str(self.error), failed_probe=self.error.failed_probe)
        if now >= self.until:
            return None
        if self.times >= _TRIES:
            return AdapterRefused("The engine cannot be started with it, see the worker's log.")
        return EngineBusy("The model cannot be loaded now.", retry_after=self.until - now)


class SwappedEngine:
    """The engine of one model among many, each a request's `adapter` with whole weights. For one event loop."""

    adapters = 1

    def __init__(self, make: Make, version: str = "", timings: Timings = Timings()) -> None:
        self._make, self.version, self._timings = make, version, timings
        self._engine: Engine | None = None
        self._loaded = ""  # the name of the weights that `_engine` has
        self._since = 0.0  # when they were loaded
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting: OrderedDict[str, tuple[str, Adapter]] = OrderedDict()  # with the base, the first to wait first
        self._clients = Counter[str]()  # requests that wait, by the weights that they wait for
        self._swap: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._yields = False  # the turn of the loaded model is over
        self._failures: OrderedDict[str, _Failure] = OrderedDict()

    @property
    def models(self) -> tuple[str, ...]:
        return (ANY_MODEL,)

    @property
    def phase(self) -> str:
        engine: object = self._engine
        return engine.phase if isinstance(engine, Phased) else ""

    def batch_limits(self, while_interactive: int) -> tuple[int, int] | None:
        engine: object = self._engine
        return engine.batch_limits(while_interactive) if isinstance(engine, BatchLimited) else None

    async def start(self) -> None:
        """Build the loaded model's engine again where it has died; without one, nothing is loaded before a request."""
        async with self._changing:
            if self._engine is None:
                return
            with ForeignCall() as start:
                await self._engine.start()
            if start.error is not None:
                log.error("tuned_model_not_loaded", exc_info=start.error, extra={"model": self._loaded})
                self._note_failure(self._loaded, start.error)
                await self._close()

    async def answer(self, request: Request) -> Answer:
        if request.adapter is None:
            return unknown_model(str(request.body.get("model")))
        async with self._use_weights(request, request.adapter) as engine:
            return await engine.answer(_strip_adapter(request))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        if request.adapter is None:
            return unknown_model(str(request.body.get("model")))
        async with self._use_weights(request, request.adapter) as engine:
            return await engine.stream(_strip_adapter(request), emit)

    async def length(self, request: Request) -> Length | None:
        """Return the length of a prompt; None where the engine cannot count."""
        if request.adapter is None:
            return None
        async with self._use_weights(request, request.adapter) as engine:
            count = getattr(engine, "length", None)
            return await count(_strip_adapter(request)) if count else None

    async def score(self, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        """Return how whole weights read and continue passages. Raises AdapterRefused without any."""
        if adapter is None:
            raise AdapterRefused("A model without weights of its own has another engine.")
        async with self._use_weights(Request("", {"model": model}, ""), adapter) as engine:
            return await _score(engine, model, passages)

    async def close(self) -> None:
        if self._swap is not None:
            self._swap.cancel()
            await asyncio.wait((self._swap,))
        async with self._changing:
            await self._close()

    @asynccontextmanager
    async def _use_weights(self, request: Request, adapter: Adapter) -> AsyncIterator[Engine]:
        """Count a request as running on the engine with these weights, once they are loaded.

        Raises EngineBusy, AdapterRefused.
        """
        await self._admit(str(request.body.get("model")), adapter)
        assert self._engine is not None
        self._running += 1
        self._idle.clear()
        try:
            yield self._engine
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _admit(self, base: str, adapter: Adapter) -> None:
        name = adapter.name
        self._clients[name] += 1
        try:
            while self._loaded != name or self._yields:
                if (failure := self._failures.get(name)) and (
                    error := failure.error_of(time.monotonic(), adapter.trial)
                ):
                    raise error
                self._waiting.setdefault(name, (base, adapter))
                swap = self._swap = self._swap or asyncio.create_task(self._change())
                await asyncio.wait((swap,))  # a client that leaves does not stop what others wait for
                if swap.cancelled():
                    raise EngineBusy("The engine is being closed.")
        finally:
            self._clients[name] -= 1
            self._clients += Counter()  # drops counts of zero

    async def _change(self) -> None:
        """Let the loaded model end its turn, then load the model that has been waited for the longest."""
        try:
            # Who waited for the loaded model runs first: their tasks go on within a step or two of the event loop.
            while self._clients[self._loaded]:  # noqa: ASYNC110
                await asyncio.sleep(0)
            if self._running:
                turn = self._since + self._timings.tuned_turn - time.monotonic()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._idle.wait(), max(turn, 0.0))
            self._yields = True
            await self._idle.wait()
            async with self._changing:
                if (following := self._next()) is not None:
                    await self._open(*following)
        finally:
            self._yields, self._swap = False, None

    def _next(self) -> tuple[str, Adapter] | None:
        """Return what to load; None where nobody waits any more, or for what is loaded."""
        while self._waiting:
            name, following = self._waiting.popitem(last=False)
            if self._clients[name]:
                return following if name != self._loaded else None
        return None

    async def _open(self, base: str, adapter: Adapter) -> None:
        began = time.monotonic()
        await self._close()
        engine: Engine | None = None
        try:
            engine = self._make(base, adapter)
            await engine.start()
            await probes.check(adapter, partial(_score, engine, base))
        except BaseException as error:  # what loads a model raises anything; a cancellation leaves no engine behind
            await _close_engine(engine)
            if not isinstance(error, Exception):
                raise
            log.exception("tuned_model_not_loaded", extra={"model": adapter.name, "base": base})
            self._note_failure(adapter.name, error, adapter.trial)
            return
        self._engine, self._loaded, self._since = engine, adapter.name, time.monotonic()
        self._failures.pop(adapter.name, None)
        seconds = round(self._since - began, 1)
        log.info("tuned_model_loaded", extra={"model": adapter.name, "base": base, "seconds": seconds})

    async def _close(self) -> None:
        engine, self._engine, self._loaded = self._engine, None, ""
        await _close_engine(engine)

    def _note_failure(self, name: str, error: Exception, trial: int = 0) -> None:
        before = self._failures.pop(name, None)
        times = before.times + 1 if before else 1
        pause = self._timings.tuned_retry * times if times < _TRIES else self._timings.tuned_rest
        self._failures[name] = _Failure(error, times, time.monotonic() + pause, trial)
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)


def _strip_adapter(request: Request) -> Request:
    """Return the request for an engine that has the weights, and knows them by the base's name."""
    return replace(request, adapter=None)


async def _score(
    engine: Engine, model: str, passages: Sequence[Passage], _adapter: Adapter | None = None
) -> list[Score]:
    scoring: object = engine
    if not isinstance(scoring, AdapterEngine):
        raise AdapterRefused(f"The engine of {model} gives no log-probabilities.")
    return await scoring.score(model, passages, None)


async def _close_engine(engine: Engine | None) -> None:
    """Close an engine; one that failed may fail once more."""
    if engine is not None:
        with ForeignCall() as closing:
            await engine.close()
        if closing.error is not None:
            log.error("engine_close_failed", exc_info=closing.error)
