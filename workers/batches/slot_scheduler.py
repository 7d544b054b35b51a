"""The shards that a worker runs at once: its slots, of which a small shard takes a part, see
`jobs.ledger.slot_weights`.

    message ─▶ slot weight ─┬─ fits ─▶ run
                            ├─ little waits ─▶ queued, so that no slot is idle between two shards
                            └─ enough waits ─▶ refused: published again, for a worker that has room

Shards run in the order of their messages: small ones do not overtake a large one for ever.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from jobs.ledger.slot_weights import SHARDS_PER_SLOT
from jobs.platform.limiters import Limit

Key = tuple[str, int]  # job, shard


class Decision(Enum):
    """The decision about a message."""

    ADMITTED = "admitted"
    DUPLICATE = "duplicate"  # the same shard waits here already
    REFUSED = "refused"


class SlotScheduler:
    """`slots` run, and others wait, until both together come to twice that: so many are published.

    No share is above one.
    """

    def __init__(self, slots: int) -> None:
        self._slots = Limit(slots, line=slots)
        self._waiting = set[Key]()
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """That many run at once, if all of them are as small as can be, and so many more that others can wait."""
        return int(self._slots.size) * (SHARDS_PER_SLOT + 1)

    @property
    def waiting(self) -> float:
        """Return how many slots' worth of shards wait."""
        return self._slots.waiting

    @contextmanager
    def enter(self, key: Key, slot_weight: float) -> Iterator[Decision]:
        """Wait for room, and hold it until the end."""
        decision = self._wait(key, slot_weight)
        try:
            yield decision
        finally:
            if decision is Decision.ADMITTED:
                self._slots.release(slot_weight)

    def close(self) -> None:
        """Turn away those that wait, and all that come: nothing more is begun."""
        self._slots.close()

    def _wait(self, key: Key, slot_weight: float) -> Decision:
        with self._lock:
            if key in self._waiting:
                return Decision.DUPLICATE
            self._waiting.add(key)
        try:
            return Decision.ADMITTED if self._slots.acquire_blocking(slot_weight) else Decision.REFUSED
        finally:
            self._waiting.discard(key)
