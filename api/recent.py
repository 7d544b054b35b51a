"""What anyone may ask, without a key: one looks it up, and everybody has what was last found.

get ── new enough ─────────────────▶ the last value
  ├── nobody looks ────────────────▶ a new one
  ├── somebody does ───────────────▶ the last value, however old
  └── and there was none before ───▶ waits for the first
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from jobs.errors import DatabaseBusy

T = TypeVar("T")


class Recent(Generic[T]):
    """A value that is kept for `seconds`, or for `times` as long as it took. For any thread."""

    def __init__(self, seconds: float, times: float = 0.0) -> None:
        self._seconds = seconds
        self._times = times
        self._lock = threading.Lock()
        self._last: tuple[T | None] | None = None  # of None: the database was away
        self._until = 0.0

    def get(self, look: Callable[[], T]) -> T:
        """Raises DatabaseBusy, and so for `seconds` to others."""
        if self._lock.acquire(blocking=self._last is None):
            try:
                if (began := time.monotonic()) > self._until:
                    self._last = (_found(look),)
                    at = time.monotonic()
                    self._until = at + max(self._seconds, self._times * (at - began))
            finally:
                self._lock.release()
        assert self._last is not None
        if (value := self._last[0]) is None:
            raise DatabaseBusy
        return value


def _found(look: Callable[[], T]) -> T | None:
    try:
        return look()
    except DatabaseBusy:
        return None
