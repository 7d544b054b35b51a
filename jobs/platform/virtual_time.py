"""Virtual time: who is served next, so that each of several flows gets an equal share of what is served.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a flow starts where its last service ended, or at the present if
that is later. The flow with the earliest start is served next, and the present moves on to that start. A flow that was
away saves nothing up, and a flow that comes anew is served before all that are ahead of the present.
"""

from typing import Generic, TypeVar

F = TypeVar("F")


class VirtualTime(Generic[F]):
    """Remember how far each flow is, for those that are ahead of the present."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ahead: dict[F, float] = {}

    def start(self, flow: F) -> float:
        """Return where the next service of `flow` starts."""
        return max(self._now, self._ahead.get(flow, 0.0))

    def charge(self, flow: F, cost: float) -> None:
        """Move the next start of `flow` on by `cost`."""
        self._ahead[flow] = self.start(flow) + cost

    def advance(self, flow: F) -> None:
        """Move the present on to the start of `flow`, which is served next."""
        start = self.start(flow)
        if start > self._now:
            self._now = start
            self._ahead = {other: at for other, at in self._ahead.items() if at > start}

    def __len__(self) -> int:
        """Return how many flows are remembered."""
        return len(self._ahead)
