"""What keeps one endpoint healthy: a circuit breaker, and a window that finds how much it can take.

    closed ──FAULTS in a row, or one refused connection──▶ open ──delay──▶ half-open: one probe
      ▲                                                     ▲                  │      │
      └──────────────────── the probe was answered ─────────┼──────────────────┘      │
                                                            └── it failed: 2x delay ──┘

The probe is a listing of models, never a user's request: a poisonous one can't keep the circuit open.
The window is AIMD: one more slot per window of answers while it is full, half at a 429 or 503 (once per
window, since the refusals of one burst arrive together).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

FAULTS: Final = 8  # in a row, without an answer between them
FIRST_DELAY_SECONDS: Final = 1.0
LAST_DELAY_SECONDS: Final = 30.0
FIRST_WINDOW: Final = 64

Clock = Callable[[], float]


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Circuit:
    clock: Clock = time.monotonic
    state: CircuitState = CircuitState.CLOSED
    _faults: int = 0
    _delay: float = FIRST_DELAY_SECONDS
    _until: float = 0.0

    @property
    def closed(self) -> bool:
        return self.state is CircuitState.CLOSED

    @property
    def wait(self) -> float:
        """Seconds until the next probe."""
        return max(0.0, self._until - self.clock())

    def due(self) -> bool:
        return self.state is CircuitState.OPEN and self.wait == 0

    def probe(self) -> None:
        self.state = CircuitState.HALF_OPEN

    def succeed(self) -> None:
        """A request was answered: forget the faults before it. Only a probe closes an open circuit."""
        self._faults = 0

    def close(self) -> None:
        self.state, self._faults, self._delay = CircuitState.CLOSED, 0, FIRST_DELAY_SECONDS

    def fault(self) -> None:
        self._faults += 1
        if self._faults >= FAULTS:
            self.trip()

    def trip(self) -> None:
        """Open, or stay open for longer if this was the probe."""
        if self.state is CircuitState.OPEN:
            return
        if self.state is CircuitState.HALF_OPEN:
            self._delay = min(self._delay * 2, LAST_DELAY_SECONDS)
        self.state, self._until = CircuitState.OPEN, self.clock() + self._delay


@dataclass(slots=True)
class Window:
    most: int
    limit: float = field(init=False)
    in_flight: int = 0
    cuts: int = 0  # a request that was sent before the last cut has nothing new to say

    def __post_init__(self) -> None:
        self.limit = float(min(FIRST_WINDOW, self.most))

    @property
    def room(self) -> int:
        return int(self.limit) - self.in_flight

    def grow(self) -> None:
        """An answer came: one slot more per `limit` of them, if the slots are used."""
        if self.in_flight >= int(self.limit):
            self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def cut(self, cuts_when_sent: int) -> None:
        """The endpoint refused a request: halve, unless that was done since the request was sent."""
        if cuts_when_sent == self.cuts:
            self.limit = max(1.0, self.limit / 2)
            self.cuts += 1
