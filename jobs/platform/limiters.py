"""Limiters: the three primitives that all queues and limits are built of.

    FairQueue             which item is next? that of the flow (a project, a receiver) that was served least
    Limit                 how much at once? so many units; the others wait in line, by priority and then in order
    SharedExclusiveLock   with whom at once? any number of processes, or one alone

None of them starts a thread or a task. A `Limit` wakes who waits when units are released; locks of other processes are
looked at again and again.
"""

import asyncio
import concurrent.futures
import itertools
import threading
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

from jobs.platform.locks import FileLock

F = TypeVar("F")
T = TypeVar("T")

_ROUNDING: Final = 1e-6  # of sums of weights
#: Seconds between looks at a lock of another process, which sends no signal when it is released.
POLL_SECONDS: Final = 0.02


class VirtualTime(Generic[F]):
    """The progress of each flow that is ahead of the present: gives each an equal share of what is served.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): a flow starts where its last service ended, or at the present if
    that is later. The flow with the earliest start is served next, and the present moves on to that start. A flow that
    was idle accumulates no credit, and a new flow is served before all that are ahead of the present.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ahead: dict[F, float] = {}

    def start(self, flow: F) -> float:
        """Return where the next service of `flow` starts."""
        return max(self._now, self._ahead.get(flow, 0.0))

    def charge(self, flow: F, cost: float) -> None:
        """Move the next start of `flow` on by `cost`."""
        self._ahead[flow] = self.start(flow) + cost

    def advance(self, flow: F) -> None:
        """Move the present on to the start of `flow`, which is served next."""
        start = self.start(flow)
        if start > self._now:
            self._now = start
            self._ahead = {other: at for other, at in self._ahead.items() if at > start}

    def __len__(self) -> int:
        """Return how many flows are remembered."""
        return len(self._ahead)


class FairQueue(Generic[T]):
    """Items of several flows. Each flow's are served in order, and flows in turn. For any thread; nothing waits here.

    A flow that had costly items is served less often. At most `limit` items of a flow are held.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._flows: dict[str, deque[tuple[T, float]]] = {}
        self._time = VirtualTime[str]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many items are held."""
        with self._lock:
            return sum(map(len, self._flows.values()))

    def count(self, flow: str) -> int:
        """Return how many items of `flow` are held."""
        return len(self._flows.get(flow, ()))

    def add(self, flow: str, item: T, cost: float = 1.0) -> bool:
        """Put `item` behind the others of its flow; return False when these are too many. `cost`: over its weight."""
        with self._lock:
            items = self._flows.setdefault(flow, deque())
            if self._limit is not None and len(items) >= self._limit:
                return False
            items.append((item, cost))
            return True

    def pop(self, ready: Callable[[str], bool] | None = None) -> T | None:
        """Take the next item; None when there is none. Flows that are not `ready` are passed over."""
        with self._lock:
            flows = [flow for flow in self._flows if ready is None or ready(flow)]
            if not flows:
                return None
            flow = min(flows, key=self._time.start)
            items = self._flows[flow]
            item, cost = items.popleft()
            self._time.advance(flow)
            self._time.charge(flow, cost)
            if not items:
                del self._flows[flow]
            return item

    def drop(self, flow: str) -> list[T]:
        """Remove the items of `flow` and return them."""
        with self._lock:
            return [item for item, _ in self._flows.pop(flow, ())]


Wait = asyncio.Future["Limit | None"] | concurrent.futures.Future["Limit | None"]
_Ticket = tuple[int, int, float, Wait]  # priority, order, weight, and what ends the wait: admitted by, or None: refused
_order = itertools.count()


class Limit:
    """A bound: at most `size` units are in use at once.

    Further requests wait by priority (lowest first), then in order. `size` may change at any time; what is in use stays
    in use. A heavy request is not overtaken by lighter ones behind it. `line` bounds the waiting: when as much as `size
    + line` is in use or waits, the next request is refused.

    One object is used by any threads, or by one event loop: `acquire` is for a loop, `acquire_blocking` for threads.
    What was acquired must be released, with the same weight.
    """

    def __init__(self, size: float, line: float = float("inf")) -> None:
        self.size, self._line_size = size, line
        self.used = self.waiting = 0.0
        self._line: list[_Ticket] = []  # sorted
        self._lock = threading.Lock()
        self._closed = False

    def try_acquire(self, weight: float = 1.0) -> bool:
        """Take `weight` units if they are free and no other request waits for them; return whether they were taken."""
        with self._lock:
            if self._closed or self._line or not self._fits(weight):
                return False
            self.used += weight
            return True

    async def acquire(self, weight: float = 1.0, priority: int = 0) -> bool:
        """Wait for `weight` units, and take them; return False when refused."""
        return await acquire_any((self,), weight, priority) is self

    def acquire_blocking(self, weight: float = 1.0, timeout: float | None = None) -> bool:
        """Wait for `weight` units, and take them; return False when refused, or none were free within `timeout`."""
        future = concurrent.futures.Future["Limit | None"]()
        ticket = (0, next(_order), weight, future)
        self._join(ticket)
        with suppress(TimeoutError):
            future.result(timeout)
        self._quit(ticket)  # from here on it cannot be admitted
        return future.done() and future.result() is self

    def release(self, weight: float = 1.0) -> None:
        """Return `weight` units, and admit those whose turn it is."""
        with self._lock:
            self.used -= weight
            self._admit()

    def resize(self, size: float) -> None:
        """Change how many units there are, and admit those that fit now."""
        with self._lock:
            self.size = size
            self._admit()

    def refuse_waiting(self) -> None:
        """Refuse all that wait now: something has changed, and they are to look again."""
        with self._lock:
            for _, _, _, future in self._line:
                if not future.done():
                    future.set_result(None)
            self._line.clear()
            self.waiting = 0.0

    def close(self) -> None:
        """Refuse all that wait, and all that come from now on."""
        self._closed = True
        self.refuse_waiting()

    @asynccontextmanager
    async def hold(self, weight: float = 1.0, priority: int = 0) -> AsyncIterator[bool]:
        """Hold `weight` units; yield False when refused."""
        held = await self.acquire(weight, priority)
        try:
            yield held
        finally:
            if held:
                self.release(weight)

    def _fits(self, weight: float) -> bool:
        return self.used + weight <= self.size + _ROUNDING

    def _join(self, ticket: _Ticket) -> None:
        with self._lock:
            if self._closed or self.used + self.waiting >= self.size + self._line_size - _ROUNDING:
                ticket[3].set_result(None)
                return
            insort(self._line, ticket)
            self.waiting += ticket[2]
            self._admit()

    def _quit(self, ticket: _Ticket) -> None:
        """Take `ticket` out of the line if it still stands there: those behind it may fit."""
        with self._lock:
            index = bisect_left(self._line, ticket)  # no two have the same order
            if index < len(self._line) and self._line[index] is ticket:
                del self._line[index]
                self.waiting -= ticket[2]
                self._admit()

    def _admit(self) -> None:
        while self._line:
            _, _, weight, future = self._line[0]
            if not future.done():  # else cancelled, or admitted elsewhere
                if not self._fits(weight):
                    return
                self.used += weight
                future.set_result(self)
            del self._line[0]
            self.waiting -= weight


async def acquire_any(limits: Sequence[Limit], weight: float = 1.0, priority: int = 0) -> Limit | None:
    """Wait until one of `limits` has `weight` units, take them, and return it; None when one of them refused.

    For limits of one event loop.
    """
    for limit in limits:
        if limit.try_acquire(weight):
            return limit
    future: asyncio.Future[Limit | None] = asyncio.get_running_loop().create_future()
    ticket = (priority, next(_order), weight, future)
    for limit in limits:
        if not future.done():
            limit._join(ticket)
    try:
        return await future
    except asyncio.CancelledError:  # units that were admitted in that same moment go to the next one
        if future.done() and not future.cancelled() and (admitted := future.result()) is not None:
            admitted.release(weight)
        raise
    finally:
        for limit in limits:
            limit._quit(ticket)


class SharedExclusiveLock:
    """A lock that any number of processes of this host share, or one has alone. One object for each event loop.

        gate   taken (exclusive) by a process that waits for the exclusive lock; the others begin nothing new
        main   held (shared) by every process with something in flight; exclusive by the one that is isolated

    So the exclusive lock is taken even while others come without end. Both are file locks: the kernel releases
    those of a process that dies. A process that holds them and hangs is waited for no longer than `patience` seconds.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._gate, self._main = FileLock(folder / "gate"), FileLock(folder / "main")
        self._patience = patience
        self._inside = False
        self._looked = self._refused_since = float("-inf")
        self._refused = False

    def try_shared(self) -> bool:
        """Take the lock shared, until `release`, unless a process has or wants it alone; return whether it was taken.

        The files are looked at each `POLL_SECONDS` at most, also by a process that holds the lock already.
        """
        at = time.monotonic()
        if not self._inside or at - self._looked >= POLL_SECONDS:
            self._looked = at
            self._look(at)
        if self._refused and at - self._refused_since < self._patience:
            return False
        self._inside = True
        return True

    async def acquire_exclusive(self) -> None:
        """Wait until no other process has the lock, and take it alone. This process must not have it."""
        deadline = time.monotonic() + self._patience
        await asyncio.sleep(POLL_SECONDS)  # a process that has just had the exclusive lock lets others go first
        for lock in (self._gate, self._main):
            while not lock.try_acquire() and time.monotonic() < deadline:  # noqa: ASYNC110 (a flock gives no notice)
                await asyncio.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Release the lock, however it was taken."""
        self._inside = False
        self._main.release()
        self._gate.release()

    def close(self) -> None:
        """Close the files, and so release the lock."""
        self._gate.close()
        self._main.close()

    def _look(self, at: float) -> None:
        """Note whether another process has, or waits for, the exclusive lock; take the shared one if not."""
        is_open = self._gate.try_acquire(shared=True)
        if is_open:
            self._gate.release()
        refused = not (is_open and (self._inside or self._main.try_acquire(shared=True)))
        if refused and not self._refused:
            self._refused_since = at
        self._refused = refused
