"""The engine host: an event loop on a thread of its own, and the engines that live on it.

vLLM's client, aiohttp and the embedder's collector belong to the loop that started them. Celery's threads hand
coroutines over and wait; the loop outlives every task, so the engine stays warm from job to job.

    line()      a batch's request; shared() one of an interactive client
    isolated()  one request with nothing else in flight, here or (`others`) in another process on the same server: if
                the engine dies, this request is the cause
    lend()      the engines are closed, and something else has their device until take_back()
    revive()    after EngineDead: one caller rebuilds, the others wait; a failed rebuild raises GaveUp. Before it,
                `on_death` is called with all that was in flight: what died too often is quarantined
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import uvloop

from jobs.platform.limiters import POLL_SECONDS, SharedExclusiveLock
from jobs.timings import Timings
from workers.engines.port import Engine, EngineDead, EngineError, Suspect
from workers.runtime.throttle import BatchThrottle

log = logging.getLogger(__name__)
_LOOK = 0.2  # seconds between looks at a stop while the engines come up
_LAST_CALLS = 5  # rounds of waiting for tasks that still run when the loop ends
T = TypeVar("T")
OnDeath = Callable[[EngineDead, Sequence[Suspect]], Awaitable[None]]


class GaveUp(Exception):
    """The engine takes nothing now; come back after `delay` seconds, or, where that `grows`, later each time."""

    def __init__(self, delay: float, *, grows: bool = False) -> None:
        super().__init__(delay)
        self.delay = delay
        self.grows = grows


async def _ignore_death(_death: EngineDead, _suspects: Sequence[Suspect]) -> None:
    """Let every engine be built again."""


class EngineHost:
    """The engines of one process on one loop. `start` blocks until they are up."""

    def __init__(
        self,
        engine: Engine,
        on_restart: Callable[[], None],
        others: SharedExclusiveLock | None = None,
        on_death: OnDeath = _ignore_death,
        throttle: BatchThrottle | None = None,
        timings: Timings = Timings(),
    ) -> None:
        self.engine, self.timings = engine, timings
        self.throttle = throttle or BatchThrottle()
        self._on_death = on_death
        self._in_flight_reports: set[Callable[[], Iterable[Suspect]]] = set()
        self._suspects: list[Suspect] = []
        self._others = others
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._on_restart = on_restart
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._in_flight = 0
        self._isolated: asyncio.Lock
        self._reviving: asyncio.Lock
        self._open: asyncio.Event
        self._quiet: asyncio.Event
        self._up: asyncio.Event
        self._started = threading.Event()
        self.generation = 0

    def start(self) -> None:
        """Run the loop and load the engines. Raises what the engine raises."""
        self._thread.start()
        self.call(self._begin()).result()
        self._started.set()

    @property
    def started(self) -> bool:
        """Return whether the engines have come up once."""
        return self._started.is_set()

    def await_start(self, stop: threading.Event) -> bool:
        """Wait until the engines have come up for the first time; False when `stop` was set before."""
        while not self._started.wait(_LOOK):
            if stop.is_set():
                return False
        return True

    def call(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Hand a coroutine to the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self, timeout: float = 10.0) -> None:
        try:
            self.call(self.engine.close()).result(timeout)
        except (TimeoutError, EngineError):
            log.warning("engine_close_failed")
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)

    def shared_turn(self) -> "_Shared":
        """Run a request with others; wait while one is isolated or the engine is being rebuilt."""
        return _Shared(self)

    def line_turn(self) -> "_Shared":
        """Run a line of a batch with others: the throttle lets few in while an interactive client waits."""
        return _Shared(self, self.throttle)

    @asynccontextmanager
    async def isolated_turn(self) -> AsyncIterator[None]:
        """Run a request with no other in flight."""
        async with self._isolated:
            self._open.clear()
            try:
                await self._quiet.wait()
                await self._up.wait()
                if self._others is not None:
                    await self._others.acquire_exclusive()
                yield
            finally:
                self._leave()
                self._open.set()

    async def lend(self) -> None:
        """Close the engines once nothing is in flight. Requests wait until `take_back`, and shards go elsewhere."""
        self._started.clear()
        await self._isolated.acquire()
        self._open.clear()
        await self._quiet.wait()
        await self._up.wait()
        await self.engine.close()

    async def take_back(self) -> None:
        """Load the engines that `lend` closed. Raises what the engines raise."""
        await self.engine.start()
        self._isolated.release()
        self._open.set()
        self._started.set()

    async def revive(self, generation: int, death: EngineDead) -> None:
        """Rebuild the engine that died in `generation`. Raises GaveUp when it does not come up, or may not."""
        async with self._reviving:
            if generation == self.generation:
                log.warning("engine_died")
                self._up.clear()  # a request would start it
                try:
                    await self._on_death(death, self._sort_suspects())
                    await self._rebuild()
                finally:
                    self._up.set()

    def share(self, others: SharedExclusiveLock) -> None:
        """Note that other processes may use the same engines from now on. On the loop."""
        if self._others is None:
            self._others = others

    @contextmanager
    def reporting(self, in_flight: Callable[[], Iterable[Suspect]]) -> Iterator[None]:
        """Report what a run has in flight when an engine dies, while the block runs. On the loop."""
        self._in_flight_reports.add(in_flight)
        try:
            yield
        finally:
            self._in_flight_reports.discard(in_flight)

    def suspect(self, suspect: Suspect) -> None:
        """Note a request that was in flight when the engine died."""
        self._suspects.append(suspect)

    def _sort_suspects(self) -> list[Suspect]:
        """Return each suspect once, first those that were in flight at most deaths."""
        suspects = {suspect.name: suspect for source in self._in_flight_reports for suspect in source()}
        suspects.update((suspect.name, suspect) for suspect in self._suspects)
        return sorted(suspects.values(), key=lambda suspect: -suspect.times)

    async def _rebuild(self) -> None:
        try:
            await self.engine.start()
        except EngineError as error:
            log.exception("engine_restart_failed")
            raise GaveUp(15.0) from error
        finally:
            self._suspects.clear()
            self.generation += 1
            self._on_restart()

    async def join(self) -> None:
        """Wait until a request may begin, and count it as in flight; call `part` at its end."""
        while True:
            if not (self._open.is_set() and self._up.is_set()):
                await self._open.wait()
                await self._up.wait()
            elif self._others is None or self._others.try_shared():
                break
            else:
                await asyncio.sleep(POLL_SECONDS)
        self._in_flight += 1
        self._quiet.clear()

    def part(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._quiet.set()
            self._leave()

    def _leave(self) -> None:
        if self._others is not None:
            self._others.release()

    async def _begin(self) -> None:
        self._isolated, self._reviving = asyncio.Lock(), asyncio.Lock()
        self._open, self._quiet, self._up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        await self.engine.start()
        for event in (self._open, self._quiet, self._up):
            event.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self._end())
        self.loop.close()

    async def _end(self) -> None:
        """Wait for tasks that still run, then cancel them, so that they can close what they have open."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for call in range(_LAST_CALLS):
            for task in left if call else ():
                task.cancel()  # again, where the task swallowed it
            if left:
                _, left = await asyncio.wait(left, timeout=self.timings.engine_loop_end)
        await self.loop.shutdown_asyncgens()


class _Shared:
    """The context of a request that runs with others in flight.

    It is a class because generators with `@asynccontextmanager` are slow: it is entered a million times.
    """

    __slots__ = ("_host", "_throttle")

    def __init__(self, host: EngineHost, throttle: BatchThrottle | None = None) -> None:
        self._host, self._throttle = host, throttle

    async def __aenter__(self) -> None:
        if self._throttle is None:
            await self._host.join()
            return
        await self._throttle.acquire()
        try:
            await self._host.join()
        except BaseException:  # also a cancellation: the slot is free again
            self._throttle.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        try:
            self._host.part()
        finally:
            if self._throttle is not None:
                self._throttle.release()
