"""Comparisons of simulated runs are right as often as they say, and the guide has what was measured.

`make verify` compares runs of 20 items, `make soak` those of every number.
"""

import math
from array import array
from statistics import fmean

import numpy as np
import pytest

from jobs.evals import comparison
from jobs.evals.comparison import OVERALL, Graded, ItemPair
from jobs.evals.significance import items_needed
from tests.simulation.comparisons import DIFFERENCES, ITEMS, KINDS, PAIRS, compare_scores, measure, table, zero_one
from tests.support.system import ROOT

GUIDE = ROOT / "docs" / "guides" / "evaluations.md"

MEASURED = [pytest.param(items, marks=() if items == 20 else pytest.mark.soak) for items in ITEMS]

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("items", MEASURED)
@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_interval_holds_the_true_difference(kind: str, difference: float, items: int) -> None:
    assert measure(kind, items, difference).coverage >= 0.93


@pytest.mark.parametrize("items", MEASURED)
@pytest.mark.parametrize("kind", KINDS)
def test_false_alarm_rate_of_each_kind_is_bounded(kind: str, items: int) -> None:
    """A share of 0.05 is measured with a standard error of 0.005."""
    alarms = measure(kind, items, 0.0).verdicts

    assert alarms <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / PAIRS)
    assert alarms == 0 or items >= comparison.MIN_ITEMS


@pytest.mark.soak
def test_mean_false_alarm_rate_of_all_kinds_is_at_most_five_percent() -> None:
    assert fmean(measure(kind, items, 0.0).verdicts for kind in KINDS for items in ITEMS[1:]) <= 0.05


@pytest.mark.soak
def test_guide_has_the_measured_table() -> None:
    assert "\n".join(table()) in GUIDE.read_text()


def test_false_alarm_rate_of_ten_criteria_is_at_most_five_percent() -> None:
    alarms, pairs, items = 0, 1000, 50
    generator = np.random.default_rng(0)
    for _ in range(pairs):
        drawn = [zero_one(generator, items, 0.0) for _ in range(10)]
        first, second = (np.hstack(run) for run in zip(*drawn, strict=True))
        scored = [
            ItemPair(item, *(Graded("", array("d", [row.all(), *row])) for row in rows))
            for item, rows in enumerate(zip(first, second, strict=True))
        ]
        compared = comparison.compare([OVERALL, *map(str, range(10))], scored)
        alarms += any(row.is_significant for row in compared)

    assert alarms / pairs <= 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_items_as_are_estimated_decide_in_most_cases(kind: str) -> None:
    """The estimate has the true difference here. From few items it is as uncertain as the difference they show."""
    draw, _ = KINDS[kind]
    generator = np.random.default_rng(0)
    first, second = draw(generator, 200_000, 0.1)
    needed = items_needed((second - first).mean(axis=1), 1)
    assert needed is not None

    decided = sum(compare_scores(*draw(generator, needed, 0.1)).verdict == "better" for _ in range(1000))

    assert 0.65 <= decided / 1000 <= 0.85
