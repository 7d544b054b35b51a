"""What a worker takes on at once: its slots, of which a small shard takes a part, see `jobs.ledger.shares`.

    doorbell ─▶ share of a slot ─┬─ fits ─▶ run
                                 ├─ little waits ─▶ in line, so that no slot stands idle between two
                                 └─ enough waits ─▶ turned away: for a worker that has room

Shards come in by the order of their doorbells: a large one is not overtaken for ever by small ones.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

from jobs.ledger.shares import TOGETHER

_ROUNDING: Final = 1e-6
Key = tuple[str, int]  # job, shard


class Entry(Enum):
    """What became of a doorbell."""

    IN = "in"
    AGAIN = "again"  # the same shard waits here already
    AWAY = "away"


class Admission:
    """`slots` run, and others wait, until both together come to twice that: so many are rung. No share is above one."""

    def __init__(self, slots: int, closing: Callable[[], bool]) -> None:
        self._slots = slots
        self._closing = closing
        self._changed = threading.Condition()
        self._line: deque[Key] = deque()
        self.waiting = 0.0  # slots' worth
        self._running = 0.0

    @property
    def threads(self) -> int:
        """That many run at once, if all of them are as small as can be, and so many more that others can wait."""
        return self._slots * (TOGETHER + 1)

    @contextmanager
    def enter(self, key: Key, share: float) -> Iterator[Entry]:
        """Waits for room; the share is taken until the end."""
        entry = self._wait(key, share)
        try:
            yield entry
        finally:
            if entry is Entry.IN:
                with self._changed:
                    self._running -= share
                    self._changed.notify_all()

    def wake(self) -> None:
        """Whoever waits looks again: nothing more is begun."""
        with self._changed:
            self._changed.notify_all()

    def _wait(self, key: Key, share: float) -> Entry:
        with self._changed:
            if key in self._line:
                return Entry.AGAIN
            if self._running + self.waiting >= 2 * self._slots - _ROUNDING:
                return Entry.AWAY
            self._line.append(key)
            self.waiting += share
            self._changed.wait_for(lambda: self._closing() or (self._line[0] == key and self._fits(share)))
            self._line.remove(key)
            self.waiting -= share
            self._changed.notify_all()  # the next one may fit too
            if self._closing():
                return Entry.AWAY
            self._running += share
            return Entry.IN

    def _fits(self, share: float) -> bool:
        return self._running + share <= self._slots + _ROUNDING
