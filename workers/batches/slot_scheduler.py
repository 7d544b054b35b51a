"""Schedule the shards that a worker runs at once; a small shard takes a part of a slot (`jobs.ledger.slot_weights`).

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
    DUPLICATE = "duplicate"  # the same shard is waiting here already
    REFUSED = "refused"


class SlotScheduler:
    """Run `slots` slots' worth of shards, and let as many more wait. No slot weight is above one."""

    def __init__(self, slots: int) -> None:
        self._slots = Limit(slots, line=slots)
        self._waiting = set[Key]()
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """Return the number of threads: for the smallest shards running at once, and for those that wait."""
        return int(self._slots.size) * (SHARDS_PER_SLOT + 1)

    @property
    def waiting(self) -> float:
        """Return how many slots' worth of shards wait."""
        return self._slots.waiting

    @contextmanager
    def enter(self, key: Key, slot_weight: float) -> Iterator[Decision]:
        """Wait for room in the slots, and take it until the block ends."""
        decision = self._wait(key, slot_weight)
        try:
            yield decision
        finally:
            if decision is Decision.ADMITTED:
                self._slots.release(slot_weight)

    def close(self) -> None:
        """Refuse the shards that wait and all later ones, so that no new shard begins."""
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
