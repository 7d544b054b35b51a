"""Decide whether a run is worse than its baseline: a test of non-inferiority on the comparison of both.

    loss below the margin ──── low > -margin ────▶ not worse      an insignificant loss alone proves nothing
    loss that is not chance ── verdict "worse" ──▶ worse
    all else ────────────────────────────────────▶ inconclusive, with the number of items that would decide

The margin is the loss that is accepted, in points: a point is a hundredth of the range of a criterion's scores, and so
one item of a hundred where scores are 0 or 1. A sample that only the baseline has a score of may have lost the whole
range: errors never make a run pass.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final, Literal

from jobs.evals import significance
from jobs.evals.comparison import MIN_ITEMS, PairedComparison, Pairing, compare

Outcome = Literal["not worse", "inconclusive", "worse"]
_ORDER: Final[tuple[Outcome, ...]] = ("not worse", "inconclusive", "worse")
#: The probability with which the items that are needed decide.
POWER: Final = 0.99
_quantile: Final = NormalDist().inv_cdf


@dataclass(frozen=True, slots=True)
class MarginTest:
    """A comparison by one criterion, and the loss of points that is accepted. `point` is a point in units of scores."""

    row: PairedComparison
    margin: float
    point: float = 0.01

    @property
    def outcome(self) -> Outcome:
        if self.row.items >= MIN_ITEMS and self.lowest > -self.margin:
            return "not worse"
        return "worse" if self.row.verdict == "worse" else "inconclusive"

    @property
    def points(self) -> tuple[float, float, float]:
        """Return the difference and its bounds, in points."""
        row = self.row
        return row.difference / self.point, row.low / self.point, row.high / self.point

    @property
    def lowest(self) -> float:
        """Return the lower bound in points, with a loss of all points by each sample that lacks its score."""
        lost = self.row.lost / (self.row.samples + self.row.lost)
        return self.points[1] * (1 - lost) - 100 * lost

    @property
    def further_items(self) -> int | None:
        """Return about how many more items decide; None where that is decided, or where no number of items does.

        The estimate takes the difference so far for the true one: the interval has to leave out 0 or the margin,
        whichever is farther from that difference.
        """
        if self.outcome != "inconclusive":
            return None
        difference, alpha = self.points[0], self.row.alpha
        distance = max(difference + self.margin, -difference)
        needed = sample_size(distance, self.row.deviation / self.point, alpha, self.row.tests)
        return None if needed is None else max(needed - self.row.items, 1)

    @property
    def text(self) -> str:
        """Return the outcome for a table, with the estimate of how many more items would decide."""
        return f"{self.outcome}, about {needed} more items" if (needed := self.further_items) else self.outcome


def sample_size(points: float, deviation: float, alpha: float = significance.ALPHA, tests: int = 1) -> int | None:
    """Return how many items a run needs that is to find a loss of `points`, or to exclude it where there is none.

    Each of the two fails with the probability 1 - `POWER`, if means are distributed normally; a margin for those that
    are not is the reason for so large a power. `deviation` is that of the differences of items, in points.
    """
    needed = significance.items_to_find(points, deviation, alpha / tests, POWER)
    if needed is None:
        return None
    # Items that did not change have an interval, too, which only their number narrows.
    unchanged = math.ceil(_quantile(1 - alpha / 2) * math.sqrt(2) * 100 / points)
    return max(needed, unchanged, MIN_ITEMS)


@dataclass(frozen=True, slots=True)
class RegressionDecision:
    """The decisions by all criteria. `unscored` are the criteria by which no item has a score in both runs."""

    tests: Sequence[MarginTest]
    unscored: Sequence[str]

    @property
    def outcome(self) -> Outcome:
        """Return the outcome of the run: worse by one criterion is worse, and undecided by one is inconclusive."""
        outcomes = [test.outcome for test in self.tests]
        return max([*outcomes, "inconclusive"] if self.unscored else outcomes, key=_ORDER.index)

    @property
    def reasons(self) -> list[str]:
        """Return a line for each criterion that has the outcome of the run."""
        lines = [f"{test.row.criterion}: {test.text}" for test in self.tests if test.outcome == self.outcome]
        unscored = [f"{name}: no item has a score in both runs" for name in self.unscored]
        return lines + (unscored if self.outcome == "inconclusive" else [])


def decide(pairing: Pairing, alpha: float, margin: float, criteria: Iterable[Mapping[str, Any]]) -> RegressionDecision:
    """Return whether the second run is worse than the first by more than `margin` points.

    The `criteria` of the eval say the range of their scores, which is 0 to 1 otherwise.
    """
    return decide_rows(compare(pairing.criteria, pairing.pairs, alpha), pairing.criteria, margin, criteria)


def decide_rows(
    rows: Iterable[PairedComparison], names: Iterable[str], margin: float, criteria: Iterable[Mapping[str, Any]]
) -> RegressionDecision:
    """Return the same by comparisons that are made already, of the criteria with these `names`."""
    ranges = {criterion.get("name"): criterion.get("range") or (0, 1) for criterion in criteria}
    points = {name: (high - low) / 100 for name, (low, high) in ranges.items()}
    compared = {row.criterion: row for row in rows}
    tests = [MarginTest(row, margin, points.get(name) or 0.01) for name, row in compared.items()]
    return RegressionDecision(tests, [name for name in names if name not in compared])
