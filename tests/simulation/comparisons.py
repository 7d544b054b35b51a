"""Simulate pairs of runs and count how often their comparison is right: `python -m tests.simulation.comparisons`.

    scores of both runs, from distributions whose difference of means is known ─▶ `comparison.compare`
        coverage       the share of intervals that hold the true difference            (0.95 is meant)
        verdict        the share that is not inconclusive: false alarms where the true difference is 0

Items differ in how hard they are, so that the scores of the two runs are correlated. The table takes three minutes.
"""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.random import Generator

from jobs.evals import comparison
from jobs.evals.comparison import Graded, ItemPair

PAIRS: Final = 2000
ITEMS: Final = (10, 20, 50, 200)
#: True differences, in units of the range of the scores.
DIFFERENCES: Final = (0.0, 0.1)
_SAMPLES: Final = 4
_UNIT: Final = NormalDist()

#: Scores of both runs: arrays of items by samples.
Scores = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """How often the interval holds the true difference, and the verdict is not inconclusive."""

    coverage: float
    verdicts: float


def zero_one(generator: Generator, items: int, difference: float, samples: int = 1) -> Scores:
    """Pass with the probability 0.6, and 0.6 + `difference`; half of the variance is that of the items."""
    shared = generator.normal(size=(items, 1))
    first, second = (
        (shared + generator.normal(size=(items, samples))) / math.sqrt(2) < _UNIT.inv_cdf(0.6 + more)
        for more in (0.0, difference)
    )
    return first.astype(float), second.astype(float)


def zero_one_samples(generator: Generator, items: int, difference: float) -> Scores:
    """Pass as above, with four samples of each item."""
    return zero_one(generator, items, difference, _SAMPLES)


def grades(generator: Generator, items: int, difference: float) -> Scores:
    """Give grades from 1 to 5, as a judge does; a share of the second run's grades below 5 is one higher."""
    shared = generator.normal(size=(items, 1))
    first, second = (
        np.clip(np.round(3.5 + (shared + generator.normal(size=(items, 1))) / math.sqrt(2)), 1, 5) for _ in range(2)
    )
    below_five = _UNIT.cdf(1)  # 4.5 is one deviation above the mean
    raised = generator.random((items, 1)) < 4 * difference / below_five
    return first, np.where(raised & (second < 5), second + 1, second)


def continuous(generator: Generator, items: int, difference: float) -> Scores:
    """Draw scores between 0 and 1 from beta distributions, whose means are those of the items."""
    means = generator.uniform(0.2, 0.7, (items, 1))
    first, second = (generator.beta(10 * mean, 10 * (1 - mean)) for mean in (means, means + difference))
    return first, second


def few_changed(generator: Generator, items: int, difference: float) -> Scores:
    """Draw scores as above; four of five items have the same score in both runs."""
    means = generator.uniform(0.2, 0.4, (items, 1))
    first, second = (generator.beta(10 * mean, 10 * (1 - mean)) for mean in (means, means + 5 * difference))
    return first, np.where(generator.random((items, 1)) < 0.2, second, first)


#: The scores by what the table calls them, with their range.
KINDS: Final[dict[str, tuple[Callable[[Generator, int, float], Scores], float]]] = {
    "0 or 1": (zero_one, 1.0),
    "0 or 1, four samples": (zero_one_samples, 1.0),
    "grades 1 to 5": (grades, 4.0),
    "continuous": (continuous, 1.0),
    "continuous, few changed": (few_changed, 1.0),
}


@cache
def measure(kind: str, items: int, difference: float) -> Rates:
    """Return the rates of `PAIRS` pairs of runs."""
    draw, span = KINDS[kind]
    generator = np.random.default_rng(0)
    rows = [compare_scores(*draw(generator, items, difference)) for _ in range(PAIRS)]
    covered = sum(row.low <= span * difference <= row.high for row in rows)
    return Rates(covered / PAIRS, sum(row.is_significant for row in rows) / PAIRS)


def compare_scores(first: Any, second: Any) -> comparison.PairedComparison:
    """Return the comparison of two runs with these scores."""
    pairs = [
        ItemPair(item, Graded("first", array("d", [before])), Graded("second", array("d", [after])))
        for item, columns in enumerate(zip(first, second, strict=True))
        for before, after in zip(*columns, strict=True)
    ]
    [row] = comparison.compare(["score"], pairs)
    return row


def table() -> list[str]:
    """Return the lines of the guide's table: a row for each kind of scores and difference, a column for each number."""
    head = [f"{items} items" for items in ITEMS]
    lines = [f"| scores | true difference | {' | '.join(head)} |", f"|---|---|{'---|' * len(ITEMS)}"]
    for kind, (_, span) in KINDS.items():
        for difference in DIFFERENCES:
            rates = [measure(kind, items, difference) for items in ITEMS]
            cells = " | ".join(f"{rate.coverage:.3f} / {rate.verdicts:.3f}" for rate in rates)
            lines.append(f"| {kind} | {span * difference:g} | {cells} |")
    return lines


if __name__ == "__main__":
    print(*table(), sep="\n")
