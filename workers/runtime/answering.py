"""Answer the lines of a shard: all at once, then in smaller and smaller groups those that failed.

When an engine dies, every line in flight is a suspect, and most suspects are innocent. Each round has smaller groups
(see `workers.runtime.output_lines`), so that an innocent line soon succeeds, and the poison line is isolated in the
end. A request that never reached the model (busy, refused, circuit open) counts against no line: the line waits. When
no line was answered for a while, and the engine has no request in progress, the whole shard is released with a delay:
at once where no engine has the model.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from workers.engines.port import Answer, EngineBusy, EngineDead, EngineFault, Request, Suspect, Unserved
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.output_lines import Item

log = logging.getLogger(__name__)

_PAUSE = 0.5


#: Tries of a line whose request breaks; the last one runs alone.
MAX_TRIES: Final = 3


class Answering:
    """One run over the items of a shard. `emit` is called on the loop, once per answered item.

    `ask` sends a request; by default to the engine.
    """

    def __init__(
        self,
        host: EngineHost,
        tries: int,
        emit: Callable[[Item, Answer], None],
        ask: Callable[[Request], Awaitable[Answer]] | None = None,
    ) -> None:
        self._host = host
        self._ask = ask or host.engine.answer
        self._tries = tries
        self._emit = emit
        self._last_sign = time.monotonic()
        self._begun: dict[int, tuple[float, Item]] = {}  # when the request was sent

    async def run(self, items: Sequence[Item]) -> list[Item]:
        """Answer all items; return those that failed at each try. Raises GaveUp, CancelledError."""
        with self._host.reporting(self._in_flight):
            return await self._run(items)

    async def _run(self, items: Sequence[Item]) -> list[Item]:
        left, spent = list(items), []
        while left:
            width = max((item.failures.width(self._tries) for item in left), key=_lane_count)
            ready = [item for item in left if item.failures.width(self._tries) == width]
            left = [item for item in left if item.failures.width(self._tries) != width]
            await self._round(ready, width)
            broken = [item for item in ready if item.fault is not None]
            spent += [item for item in broken if item.failures.is_spent(self._tries)]
            left += [item for item in broken if not item.failures.is_spent(self._tries)]
        return spent

    async def _round(self, items: list[Item], width: int | None) -> None:
        """Try each item once. A GaveUp of one ends the round for all."""
        waiting = iter(items)

        async def lane() -> None:
            for item in waiting:
                item.fault = None
                await self._try(item)

        lanes = len(items) if width is None else min(width, len(items))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(lane()) for _ in range(lanes)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        for task in tasks:
            task.result()  # raises the CancelledError of a single lane, which the group ignores

    async def _try(self, item: Item) -> None:
        """Send a request until the engine takes it; record its answer or its failure."""
        slot = self._host.isolated_turn if item.failures.must_isolate(self._tries) else self._host.line_turn
        while True:
            generation = self._host.generation
            try:
                async with slot():
                    generation = self._host.generation
                    answer = await self._ask_engine(item)
            except EngineBusy as busy:
                await self._wait(busy)
                continue
            except EngineDead as death:
                self._note_fault(item, death, died=True)
                self._host.suspect(_suspect(item))
                await self._host.revive(generation, death)
                self._last_sign = time.monotonic()
                return
            except EngineFault as fault:
                self._note_fault(item, fault, died=fault.unreachable)
                return
            except Exception as error:
                log.exception("engine_raised")
                self._note_fault(item, error)
                return
            self._last_sign = time.monotonic()
            self._emit(item, answer)
            return

    async def _ask_engine(self, item: Item) -> Answer:
        begun = time.monotonic()
        self._begun[id(item)] = begun, item
        try:
            answer = await self._ask(item.request)
        finally:
            del self._begun[id(item)]
        item.seconds = time.monotonic() - begun
        return answer

    def _in_flight(self) -> Iterator[Suspect]:
        return (_suspect(item) for _, item in self._begun.values())

    def _note_fault(self, item: Item, fault: Exception, *, died: bool = False) -> None:
        item.failures.add(died=died, isolated=item.failures.must_isolate(self._tries))
        item.fault = fault
        self._last_sign = time.monotonic()

    async def _wait(self, busy: EngineBusy) -> None:
        at = time.monotonic()
        pause = max(busy.retry_after or _PAUSE, _PAUSE)
        if isinstance(busy, Unserved) and not self._begun:
            raise GaveUp(max(pause, 2.0), grows=True)
        working = any(at - begun > _PAUSE for begun, _ in self._begun.values())
        timings = self._host.timings
        if at - self._last_sign + pause > (timings.engine_busy_in_progress if working else timings.engine_busy):
            raise GaveUp(max(pause, 2.0))
        await asyncio.sleep(pause)


def _suspect(item: Item) -> Suspect:
    """Return an item as a suspect, named by ids alone: the job's, the line's, and the client's."""
    name = f"{item.request.job_id} {item.id} ({item.custom_id})" if item.custom_id else item.id
    return Suspect(name, str(item.request.body.get("model")), item.failures.deaths)


def _lane_count(width: int | None) -> float:
    return float("inf") if width is None else width
