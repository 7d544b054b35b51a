"""Keep values from SQL for a moment, so that a million lines do not read the same row a million times."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from jobs.errors import DatabaseBusy
from workers.engines.port import EngineBusy

K = TypeVar("K")
V = TypeVar("V")
_MAX_KEYS: Final = 10_000
_AGAIN: Final = 1.0


class RecentReads(Generic[K, V]):
    """The values of keys, each read again when it is older than `seconds`. For one event loop.

    `read` runs in a thread.
    """

    def __init__(self, read: Callable[[K], V], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._seconds, self._clock = read, seconds, clock
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recent-reads")
        self._known: OrderedDict[K, tuple[V, float]] = OrderedDict()  # and until when it counts

    async def get(self, key: K) -> V:
        """Return the value of a key.

        Raises:
            EngineBusy: The database gives no answer now.
        """
        if (known := self._known.get(key)) is not None and self._clock() < known[1]:
            return known[0]
        async with self._lock:
            if (known := self._known.get(key)) is not None and self._clock() < known[1]:
                return known[0]
            until = self._clock() + self._seconds
            try:
                value = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, key)
            except DatabaseBusy as error:
                raise EngineBusy(error.message, retry_after=_AGAIN) from error
            self._known[key] = value, until
            self._known.move_to_end(key)
            if len(self._known) > _MAX_KEYS:
                self._known.popitem(last=False)
            return value
