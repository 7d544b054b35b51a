"""Leases by observation: a claim lives while its beat moves, on the observer's own monotonic clock.

No timestamp of another process is compared with ours, so a clock that jumps expires nothing. A new leader starts
its observations afresh and therefore waits one whole lease before it takes anything back.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Observer(Generic[K]):
    """Watches beats; `stale` names the keys whose beat has not moved for `lease` seconds."""

    def __init__(self, lease: float, clock: Callable[[], float]) -> None:
        self._lease = lease
        self._clock = clock
        self._seen: dict[K, tuple[int, float]] = {}

    def stale(self, beats: Iterable[tuple[K, int]]) -> list[tuple[K, int]]:
        """Look at all current claims; those that are not there any more are forgotten."""
        at = self._clock()
        before, self._seen = self._seen, {}
        expired = []
        for key, beat in beats:
            old = before.get(key)
            since = old[1] if old is not None and old[0] == beat else at
            self._seen[key] = (beat, since)
            if at - since >= self._lease:
                expired.append((key, beat))
        return expired


class Since(Generic[K]):
    """How long each of a changing set of things has been there, on the observer's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: dict[K, float] = {}

    def ages(self, present: Iterable[K]) -> dict[K, float]:
        at = self._clock()
        self._first = {key: self._first.get(key, at) for key in present}
        return {key: at - first for key, first in self._first.items()}
