"""What a worker takes on at once: its slots, of which a small shard takes a part, see `jobs.ledger.shares`.

    doorbell ─▶ share of a slot ─┬─ fits ─▶ run
                                 ├─ little waits ─▶ in line, so that no slot stands idle between two
                                 └─ enough waits ─▶ turned away: for a worker that has room

Shards come in by the order of their doorbells: a large one is not overtaken for ever by small ones.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from jobs.ledger.shares import TOGETHER
from jobs.platform.limiters import Limit

Key = tuple[str, int]  # job, shard


class Entry(Enum):
    """What became of a doorbell."""

    IN = "in"
    AGAIN = "again"  # the same shard waits here already
    AWAY = "away"


class Admission:
    """`slots` run, and others wait, until both together come to twice that: so many are rung. No share is above one."""

    def __init__(self, slots: int) -> None:
        self._slots = Limit(slots, line=slots)
        self._waiting = set[Key]()
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """That many run at once, if all of them are as small as can be, and so many more that others can wait."""
        return int(self._slots.size) * (TOGETHER + 1)

    @property
    def waiting(self) -> float:
        """Return how many slots' worth of shards wait."""
        return self._slots.waiting

    @contextmanager
    def enter(self, key: Key, share: float) -> Iterator[Entry]:
        """Wait for room, and hold it until the end."""
        entry = self._wait(key, share)
        try:
            yield entry
        finally:
            if entry is Entry.IN:
                self._slots.release(share)

    def close(self) -> None:
        """Turn away those that wait, and all that come: nothing more is begun."""
        self._slots.close()

    def _wait(self, key: Key, share: float) -> Entry:
        with self._lock:
            if key in self._waiting:
                return Entry.AGAIN
            self._waiting.add(key)
        try:
            return Entry.IN if self._slots.acquire_blocking(share) else Entry.AWAY
        finally:
            self._waiting.discard(key)
