"""The measurement finds processes that grow or leak descriptors, and passes those that only fluctuate."""

import random
from collections.abc import Callable

import pytest

from tests.chaos.soak import Sample, Weighed

pytestmark = pytest.mark.verify

_MINUTE = 60.0


def _weighed(minutes: int, rss: Callable[[float], float], fds: Callable[[float], int] = lambda _: 30) -> Weighed:
    """Make the measurements of a process of so many minutes: its memory and descriptors at each hour."""
    ages = [180 + minute * _MINUTE for minute in range(minutes)]
    return Weighed("web", 1, tuple(Sample(age, rss(age / 3600), fds(age / 3600)) for age in ages))


@pytest.mark.parametrize(("minutes", "slope"), [(480, 1.9), (30, 12.0), (480, -5.0)])
def test_constant_or_fluctuating_memory_passes(minutes: int, slope: float) -> None:
    dice = random.Random(1)

    assert _weighed(minutes, lambda hour: 100 + slope * hour + dice.uniform(-0.2, 0.2)).violations() == []


@pytest.mark.parametrize(("minutes", "slope"), [(480, 2.5), (30, 30.0)])
def test_growing_process_is_reported(minutes: int, slope: float) -> None:
    [why] = _weighed(minutes, lambda hour: 100 + slope * hour).violations()

    assert f"web 1 grows by {slope:.1f} MiB/h" in why


def test_growing_descriptors_are_reported_but_not_connections_to_engines() -> None:
    leaks = _weighed(480, lambda _: 100, lambda hour: 30 + int(60 * hour))
    connects = _weighed(480, lambda _: 100, lambda hour: 46 if hour > 2 else 30)

    assert "descriptors" in leaks.violations()[0]
    assert connects.violations() == []
