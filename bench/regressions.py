"""Measure how often the decision about a regression is wrong, in simulated pairs of runs.

    python -m bench regressions [--pairs 200] [--points 5]

Each kind of scores is drawn with no difference (an A/A test) and with a loss of `--points` points, which is the margin
too. The number of items is that which `jobs.evals.regression.sample_size` states for the kind's spread. A false
alarm is a run without a loss that is called worse; a loss is missed where the run is not called worse.
"""

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.evals.regression import MarginTest, sample_size
from tests.simulation.comparisons import KINDS, compare_scores

PAIRS = 200
POINTS = 5.0
_PILOT = 200_000  # items from which the spread is known


@dataclass(frozen=True, slots=True)
class Errors:
    """The number of items of each run, and the shares of pairs with each mistake.

    `undecided` is the share without a loss that is inconclusive. `passed` is the part of `missed` that is not worse.
    """

    items: int
    false_alarms: float
    undecided: float
    missed: float
    passed: float


def main() -> None:
    options = _options()
    table = Table("scores", "items", "false alarms", "undecided", "missed", "passed", box=box.SIMPLE)
    for kind in KINDS:
        errors = measure(kind, options.pairs, options.points)
        shares = (errors.false_alarms, errors.undecided, errors.missed, errors.passed)
        table.add_row(kind, f"{errors.items:,}", *(f"{share:.1%}" for share in shares))
    table.title = f"{options.pairs} pairs of runs without a loss, and with one of {options.points:g} points"
    Console(width=120).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure decisions about regressions")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of runs for each number, each with its seed")
    parser.add_argument("--points", type=float, default=POINTS, help="the loss that is planted, and the margin")
    return parser.parse_args()


def measure(kind: str, pairs: int, points: float) -> Errors:
    """Return the errors of the decision with the number of items that is stated for a kind of scores."""
    items = items_in_table(kind, points)
    alike, lossy = (
        Counter(outcome(kind, items, loss, points, seed) for seed in range(pairs)) for loss in (0.0, points)
    )
    return Errors(
        items,
        alike["worse"] / pairs,
        alike["inconclusive"] / pairs,
        1 - lossy["worse"] / pairs,
        lossy["not worse"] / pairs,
    )


def items_in_table(kind: str, points: float) -> int:
    """Return the number of items for the larger spread: that without a loss, or with one."""
    draw, span = KINDS[kind]
    spreads = []
    for loss in (0.0, points):
        worse, better = draw(np.random.default_rng(0), _PILOT, loss / 100)
        spreads.append(float((better - worse).mean(axis=1).std()) / span * 100)
    items = sample_size(points, max(spreads))
    assert items is not None
    return items


def outcome(kind: str, items: int, loss: float, margin: float, seed: int) -> str:
    """Return the decision about a run whose scores are `loss` points below those of its baseline."""
    draw, span = KINDS[kind]
    run, baseline = draw(np.random.default_rng(seed), items, loss / 100)
    return MarginTest(compare_scores(baseline, run), margin, span / 100).outcome


if __name__ == "__main__":
    main()
