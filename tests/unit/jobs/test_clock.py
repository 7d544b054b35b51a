"""Wall time that is not led astray by a jump."""

import time
from dataclasses import dataclass

import pytest

from jobs.clock import SteadyClock, now

_NOON = 1_800_000_000.0
_DAY = 86_400.0


@dataclass(slots=True)
class Clocks:
    """A machine's two clocks."""

    wall: float = _NOON
    monotonic: float = 50.0

    def go(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def steady(clocks: Clocks) -> SteadyClock:
    return SteadyClock(lambda: clocks.wall, lambda: clocks.monotonic)


def test_tells_the_wall_time() -> None:
    assert now() == pytest.approx(time.time(), abs=1)


def test_small_corrections_are_followed_at_once(clocks: Clocks, steady: SteadyClock) -> None:
    clocks.go(10)
    clocks.wall += 2.5

    assert steady() == _NOON + 12.5


@pytest.mark.parametrize("jump", [3600.0, -3600.0, _DAY])
def test_reverted_clock_jump_is_ignored(clocks: Clocks, steady: SteadyClock, jump: float) -> None:
    clocks.wall += jump
    told = []
    for _ in range(11):
        clocks.go(10)
        told.append(steady() - _NOON)
    clocks.wall -= jump
    clocks.go(10)
    told.append(steady() - _NOON)

    assert told == pytest.approx([10.0 * n for n in range(1, 13)])


@pytest.mark.parametrize("jump", [3600.0, -3600.0, _DAY])
def test_a_jump_that_lasts_is_believed_soon_enough_for_signatures(
    clocks: Clocks, steady: SteadyClock, jump: float
) -> None:
    clocks.wall += jump
    off = []
    for _ in range(30):
        clocks.go(10)
        off.append(abs(steady() - clocks.wall))

    wrong = sum(seconds > 1 for seconds in off)
    assert 10 < wrong < 15, "believed after two minutes, and never left again"
    assert off[wrong:] == pytest.approx([0.0] * (30 - wrong))


def test_a_clock_that_jumps_about_is_not_believed(clocks: Clocks, steady: SteadyClock) -> None:
    for n in range(60):
        clocks.wall += 3600 if n % 2 == 0 else -1800
        clocks.go(10)

        assert steady() == pytest.approx(_NOON + 10 * (n + 1))


def test_second_clock_jump_restarts_confirmation_period(clocks: Clocks, steady: SteadyClock) -> None:
    clocks.wall += _DAY
    steady()
    clocks.go(100)
    clocks.wall -= _DAY / 2
    steady()
    clocks.go(60)

    assert steady() == pytest.approx(_NOON + 160)
