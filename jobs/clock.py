"""Wall time, in one place: SQL stores unix seconds as floats, the API shows whole seconds.

Nothing that decides about a lease reads this clock; the dispatcher's own monotonic clock does that. What must read it
(the end of a completion window, a schedule, an attempt that is due) is protected from a clock that jumps and comes
back.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

#: A step of the wall clock beyond this is a jump; less is followed at once.
JUMP_SECONDS = 30.0
#: How long a jump must have held to be believed. Receivers take signatures that are five minutes off.
TRUST_SECONDS = 120.0
#: Numbers from here on are no times, in seconds or smaller units.
MAX_TIME = 1e300


class SteadyClock:
    """Unix time in seconds that goes on at the pace of the monotonic clock when the wall clock jumps.

    Where the two part by more than `jump` seconds, the new wall time counts once it has held for `trust` seconds. A
    machine that slept, and one whose clock was wrong and was corrected, are thus followed a little later.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jump: float = JUMP_SECONDS,
        trust: float = TRUST_SECONDS,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._jump, self._trust = jump, trust
        self._offset = wall() - monotonic()
        self._doubted: tuple[float, float] | None = None  # the other offset, and since when

    def __call__(self) -> float:
        at = self._monotonic()
        offset, doubted = self._wall() - at, self._doubted
        if abs(offset - self._offset) <= self._jump:
            self._offset, self._doubted = offset, None
        elif doubted is None or abs(offset - doubted[0]) > self._jump:
            self._doubted = (offset, at)
        elif at - doubted[1] >= self._trust:
            self._offset, self._doubted = offset, None
        return at + self._offset


def duration(seconds: float) -> str:
    """Return `seconds` in words, such as `3 min 20 s`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def read_time(value: Any) -> float:
    """Return the unix seconds that a value of JSON names: a number, or a time as ISO 8601 writes it, else in UTC.

    Raises ValueError, also for a number that is no time.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < MAX_TIME:
            raise ValueError("the number is too large for a time")
        return float(value)
    moment = datetime.fromisoformat(value if isinstance(value, str) else "")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_steady = SteadyClock()


def now() -> float:
    """Return unix time in seconds."""
    return _steady()
