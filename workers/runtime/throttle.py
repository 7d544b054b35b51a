"""Limit the lines of batches in an engine while interactive clients wait.

    line of a batch ──▶ free? ──▶ engine         no client waits: a little above the engine's own limit, so that the
                          └── no: it waits       engine stays full while one line is followed by the next
    request of a client ──▶ free for a few lines only, until some seconds after the last answer

Priority alone lets a request overtake lines that wait, not lines that run: on a CPU the time of a step grows with all
that is in it. So most lines are kept out. On a quick engine (a GPU), none are.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.platform.limiters import Limit

#: The most lines in flight while a client waits, and while none does.
LineLimits = tuple[int, int]


def no_limits() -> LineLimits | None:
    """Set no limit."""
    return None


class BatchThrottle:
    """Limit the lines of batches in flight, for one event loop.

    `limits` is called each time, because an engine knows its own only once it is up. A client counts as waiting until
    `seconds` after its answer: its next request may come soon.
    """

    def __init__(self, limits: Callable[[], LineLimits | None] = no_limits, seconds: float = 10.0) -> None:
        self._limits, self._seconds = limits, seconds
        self._lines = Limit(float("inf"))
        self._clients = 0
        self._until = float("-inf")

    @contextmanager
    def client(self) -> Iterator[None]:
        """Count a client as waiting while the block runs."""
        self._clients += 1
        try:
            yield
        finally:
            self._clients -= 1
            self._until = time.monotonic() + self._seconds
            asyncio.get_running_loop().call_later(self._seconds, lambda: self._lines.resize(self._size))

    async def acquire(self) -> None:
        """Wait until a line of a batch may be in flight, in order; then `release` must be called."""
        self._lines.size = self._size
        if not self._lines.try_acquire():
            await self._lines.acquire()

    def release(self) -> None:
        self._lines.size = self._size
        self._lines.release()

    @property
    def limit(self) -> int | None:
        """Return how many lines may be in flight now; None: any number."""
        limits = self._limits()
        if limits is None:
            return None
        return limits[0 if self._clients or time.monotonic() < self._until else 1]

    @property
    def _size(self) -> float:
        limit = self.limit
        return float("inf") if limit is None else limit
