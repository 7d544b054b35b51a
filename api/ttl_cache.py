"""Cache values for a few seconds, so that not every request has to ask SQL.

    Recent    one value for everybody, without a key; one thread at a time refreshes it
    Trusted   a value for each key; only good answers are cached

A revoked key and a paused model are therefore refused within two seconds.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from api.shares import run_in_threadpool
from jobs.errors import DatabaseBusy, NightmillError

T = TypeVar("T")


class Recent(Generic[T]):
    """A value that is cached for `seconds`, or for `times` its duration. Usable from any thread."""

    def __init__(self, seconds: float, times: float = 0.0) -> None:
        self._seconds = seconds
        self._times = times
        self._lock = threading.Lock()
        self._last: tuple[T | None] | None = None  # (None,): the database was unavailable
        self._until = 0.0

    def get(self, look: Callable[[], T]) -> T:
        """Return the cached value, or that of `look`.

        Raises: DatabaseBusy, cached for `seconds` too.
        """
        if self._lock.acquire(blocking=self._last is None):
            try:
                if (began := time.monotonic()) > self._until:
                    self._last = (_try_look(look),)
                    at = time.monotonic()
                    self._until = at + max(self._seconds, self._times * (at - began))
            finally:
                self._lock.release()
        assert self._last is not None
        if (value := self._last[0]) is None:
            raise DatabaseBusy
        return value


def _try_look(look: Callable[[], T]) -> T | None:
    try:
        return look()
    except DatabaseBusy:
        return None


_MAX_KEYS: Final = 10_000


class Trusted(Generic[T]):
    """Values by the digest of their key, for one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: OrderedDict[bytes, tuple[float, T]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[None]] = {}

    async def get(self, key: bytes, look: Callable[[], T]) -> T:
        """Return the cached value, or that of `look`, which runs in a thread. A NightmillError is not cached."""
        known = self._known.get(key)
        age = time.monotonic() - known[0] if known else self._seconds
        if known is None or age >= self._seconds:
            return await self._ask(key, look)
        if age >= self._seconds / 2 and key not in self._asking:
            self._asking[key] = asyncio.create_task(self._refresh(key, look))
        return known[1]

    async def _ask(self, key: bytes, look: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            value = await run_in_threadpool(look)
        except NightmillError:
            self._known.pop(key, None)
            raise
        self._known[key] = (began, value)
        self._known.move_to_end(key)
        if len(self._known) > _MAX_KEYS:
            self._known.popitem(last=False)
        return value

    async def _refresh(self, key: bytes, look: Callable[[], T]) -> None:
        try:
            with suppress(NightmillError):  # the next caller gets the error
                await self._ask(key, look)
        finally:
            del self._asking[key]
