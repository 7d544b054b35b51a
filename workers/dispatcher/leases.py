"""Observe leases: a claim lives while its heartbeat moves, on the observer's own monotonic clock."""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

_LOOK = 1 / 3  # of a lease
_LONG = 2 / 3  # of a lease
_MIN_LOOK = 1.0  # seconds

K = TypeVar("K", bound=Hashable)


class Observer(Generic[K]):
    """Watch leases by observation: a claim lives while its heartbeat moves, on the observer's own monotonic clock.

    No timestamp of another process is compared with this clock, so a clock that jumps expires nothing. A new leader
    starts its observations afresh and therefore waits one whole lease before it revokes anything. So does a leader that
    could not write while all heartbeats stood still: then no worker could send one. And time in which it did not look
    (it stood still, perhaps with all others: a paused deployment, a suspended machine) does not count.
    """

    def __init__(self, lease: float, clock: Callable[[], float]) -> None:
        self._lease = lease
        self._clock = clock
        self._seen: dict[K, tuple[int, float]] = {}
        self._looked, self._away = clock(), 0.0
        self._moved = self._looked

    def find_stale(self, heartbeats: Iterable[tuple[K, int]]) -> list[tuple[K, int]]:
        """Look at all current claims, and return those whose heartbeat did not move for a lease."""
        at = self._time()
        before, self._seen = self._seen, {}
        expired = []
        for key, heartbeat in heartbeats:
            old = before.get(key)
            since = old[1] if old is not None and old[0] == heartbeat else at
            self._moved = max(self._moved, since)
            self._seen[key] = (heartbeat, since)
            if at - since >= self._lease:
                expired.append((key, heartbeat))
        return expired

    @property
    def stands_still(self) -> bool:
        """Return whether no heartbeat has moved for most of a lease, as far as was looked."""
        return self._looked - self._away - self._moved >= self._lease * _LONG

    def start_afresh(self) -> None:
        """Forget all observations."""
        self._seen.clear()

    def _time(self) -> float:
        """Return the clock's time without unobserved time: a look stands for a part of a lease at most."""
        looked, self._looked = self._looked, self._clock()
        self._away += max(0.0, self._looked - looked - max(self._lease * _LOOK, _MIN_LOOK))
        return self._looked - self._away


class Since(Generic[K]):
    """Tell for how long each of a changing set of things has been there, on the observer's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: dict[K, float] = {}

    def ages(self, present: Iterable[K]) -> dict[K, float]:
        at = self._clock()
        self._first = {key: self._first.get(key, at) for key in present}
        return {key: at - first for key, first in self._first.items()}
