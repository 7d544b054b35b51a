"""Who may be sent to now. One lane per receiver; no I/O and no clock of its own.

    claimed ──▶ waiting in its lane ──▶ in flight: 2 per lane, 256 in all ──▶ finished

A lane with a request older than a second is slow, until it answers faster: one request at a time, nothing claimed
ahead, and all slow lanes together get half of the places. So receivers that hang, however many, leave room.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.webhooks.due import DeliveryClaim

IN_FLIGHT = 256
PER_LANE = 2
#: Claimed ahead for each lane, since outcomes are recorded, and claims made, only each 50 ms.
AHEAD = 16
SLOW_AFTER = 1.0
_SLOW_LANES = IN_FLIGHT // 2
_FORGET_AFTER = 300.0


@dataclass(slots=True)
class _Lane:
    waiting: deque[DeliveryClaim] = field(default_factory=deque)
    flights: dict[str, float] = field(default_factory=dict)  # delivery → start
    slow: bool = False
    used: float = 0.0

    def may_start(self) -> bool:
        return bool(self.waiting) and len(self.flights) < (1 if self.slow else PER_LANE)


class Lanes:
    """The claims that this process holds and has no outcome of yet."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._flying = 0

    def add(self, claims: Iterable[DeliveryClaim]) -> None:
        for claim in claims:
            self._lanes.setdefault(claim.lane, _Lane()).waiting.append(claim)

    def start(self, at: float) -> list[DeliveryClaim]:
        """The claims to send now: one per lane and round, while there are places."""
        started: list[DeliveryClaim] = []
        ready = [lane for lane in self._lanes.values() if lane.may_start()]
        while ready and self._flying < IN_FLIGHT:
            for lane in ready[: IN_FLIGHT - self._flying]:
                claim = lane.waiting.popleft()
                lane.flights[claim.id] = lane.used = at
                self._flying += 1
                started.append(claim)
            ready = [lane for lane in ready if lane.may_start()]
        return started

    def finished(self, claim: DeliveryClaim, at: float) -> None:
        lane = self._lanes[claim.lane]
        lane.slow = at - lane.flights.pop(claim.id) > SLOW_AFTER
        lane.used = at
        self._flying -= 1

    def watch(self, at: float) -> None:
        """Find the lanes that have become slow, forget those that are idle."""
        for name, lane in list(self._lanes.items()):
            lane.slow = lane.slow or any(at - start > SLOW_AFTER for start in lane.flights.values())
            busy = lane.waiting or lane.flights
            if not busy and (not lane.slow or at - lane.used > _FORGET_AFTER):
                del self._lanes[name]

    def surrender(self, closed: Iterable[str] = (), *, everything: bool = False) -> list[DeliveryClaim]:
        """What waits in slow and closed lanes, or in all: others may have it."""
        dropped: list[DeliveryClaim] = []
        closing = set(closed)
        for name, lane in self._lanes.items():
            if everything or lane.slow or name in closing:
                dropped += lane.waiting
                lane.waiting.clear()
        return dropped

    def allowances(self) -> dict[str, int]:
        """How many deliveries slow lanes may hold: one, or none while slow ones have half of the places."""
        slow = {name: lane for name, lane in self._lanes.items() if lane.slow}
        open_ = sum(1 for lane in slow.values() if lane.flights) < _SLOW_LANES
        return dict.fromkeys(slow, 1 if open_ else 0)

    def room(self) -> int:
        """Places without a request."""
        return IN_FLIGHT - self._flying
