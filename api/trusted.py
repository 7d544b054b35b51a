"""What SQL has just said holds for two seconds: the next request of the same kind need not wait for it.

    get ── known, and new ──────────────▶ value
      ├── known, and older than half ───▶ value, and SQL is asked beside, so that who asks on and on never waits
      └── unknown, or too old ──────────▶ SQL is asked ──▶ value, or what it raises

Kept are good answers alone. What is taken back (a key that is revoked, a model that is paused) is therefore taken back
within two seconds, which is at once as people see it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from api.shares import run_in_threadpool
from jobs.errors import NightmillError

SECONDS = 2.0
_MOST: Final = 10_000

T = TypeVar("T")


class Trusted(Generic[T]):
    """Values by the digest of what they are values of. For one event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[float, T]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[None]] = {}

    async def get(self, key: bytes, look: Callable[[], T]) -> T:
        """`look` runs in a thread, and raises NightmillError for what is not to be kept."""
        known = self._known.get(key)
        age = time.monotonic() - known[0] if known else SECONDS
        if known is None or age >= SECONDS:
            return await self._ask(key, look)
        if age >= SECONDS / 2 and key not in self._asking:
            self._asking[key] = asyncio.create_task(self._ask_beside(key, look))
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
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return value

    async def _ask_beside(self, key: bytes, look: Callable[[], T]) -> None:
        try:
            with suppress(NightmillError):  # the next who asks is told
                await self._ask(key, look)
        finally:
            del self._asking[key]
