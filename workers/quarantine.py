"""When an engine is not built again: it has died too often for that to help.

    death ──▶ note ──┬─ fewer than `limit` in `seconds` ──▶ the engine is built again
                     └─ as many ──▶ the worker pauses itself and says why; `nightmill resume worker ID` frees it

Said are the last error, the lines that were in flight at most of the deaths, and the end of the process's own log.
These are ids and the engine's words; what was asked is in neither.
"""

import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

SUSPECTS: Final = 5
LOG_LINES: Final = 8
_LOG_BYTES: Final = 16_384
_MOST_REMEMBERED: Final = 10_000


class Deaths:
    """The deaths of one process's engines."""

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._at: deque[float] = deque(maxlen=limit)
        self._in_flight: Counter[str] = Counter()
        self._error = ""

    @property
    def too_many(self) -> bool:
        return len(self._at) == self._limit and self._clock() - self._at[0] <= self._seconds

    def note(self, error: Exception) -> None:
        """The engine died, or did not come up again."""
        self._at.append(self._clock())
        self._error = str(error)

    def suspect(self, item_id: str) -> None:
        """This line was in flight when it died."""
        if item_id in self._in_flight or len(self._in_flight) < _MOST_REMEMBERED:
            self._in_flight[item_id] += 1

    def forget(self) -> None:
        self._at.clear()
        self._in_flight.clear()

    def told(self) -> str:
        """Why the engine is not built again, in words."""
        suspects = ", ".join(f"{name} ({count} times)" for name, count in self._in_flight.most_common(SUSPECTS))
        said = [f"The engine died {len(self._at)} times within {self._seconds:g} s, the last time of: {self._error}"]
        if suspects:
            said.append(f"In flight then: {suspects}")
        return "\n".join(said + last_words())


def last_words(descriptor: int = 2) -> list[str]:
    """The end of what this process and its children wrote to standard error, where that is a file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return []
    with open(f"/proc/self/fd/{descriptor}", "rb") as log:  # noqa: PTH123 (a descriptor, not a path)
        log.seek(max(0, os.fstat(descriptor).st_size - _LOG_BYTES))
        return log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
