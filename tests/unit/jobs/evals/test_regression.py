"""The decision about a regression: three outcomes, the items that are needed, and how often it is wrong."""

from typing import Any

import pytest

from bench.regressions import PAIRS, POINTS, measure, outcome
from jobs.evals.comparison import OVERALL, pair_items
from jobs.evals.regression import RegressionDecision, decide, sample_size
from tests.simulation.comparisons import KINDS
from tests.support.system import ROOT

GUIDE = ROOT / "docs" / "guides" / "evaluations-in-ci.md"


def run(*scores: float | None, name: str = "score") -> list[dict[str, Any]]:
    """Return a run with these scores of its items; None is an error."""
    return [
        {
            "id": f"outputitem_{n}",
            "datasource_item": {"n": n},
            "status": "error" if score is None else "pass" if score else "fail",
            "results": [{"name": name, "score": score, "passed": bool(score)}],
        }
        for n, score in enumerate(scores)
    ]


def decided(
    first: list[Any], second: list[Any], margin: float = 5.0, alpha: float = 0.05, **criterion: Any
) -> RegressionDecision:
    return decide(pair_items(first, second), alpha, margin, [{"name": "score", **criterion}])


@pytest.mark.parametrize(
    ("before", "after", "outcome", "more"),
    [
        ([1.0] * 60, [1.0] * 60, "not worse", None),
        ([1.0] * 20, [1.0] * 20, "inconclusive", 36),  # 56 items without a change exclude a loss of 5 points
        ([1.0] * 19, [0.0] * 19, "inconclusive", 1),
        ([1.0] * 60, [1.0] * 50 + [0.0] * 10, "worse", None),
        ([1.0] * 900, [1.0] * 890 + [0.0] * 10, "not worse", None),  # a loss that is not chance, and is accepted
        ([0.0] * 60, [1.0] * 60, "not worse", None),
    ],
)
def test_outcome_follows_loss_and_number_of_items(
    before: list[float], after: list[float], outcome: str, more: int | None
) -> None:
    decision = decided(run(*before), run(*after))

    assert decision.outcome == outcome
    assert {test.further_items for test in decision.tests} == {more}


def test_outcome_of_run_is_that_of_its_worst_criterion() -> None:
    names = ("a", "b", "c")

    def graded(*lost: int) -> list[dict[str, Any]]:
        columns = [
            run(*(float(n >= count) for n in range(100)), name=name) for name, count in zip(names, lost, strict=True)
        ]
        return [
            {**rows[0], "status": "pass", "results": [row["results"][0] for row in rows]}
            for rows in zip(*columns, strict=True)
        ]

    undecided = decided(graded(0, 0, 0), graded(0, 3, 0))
    worse = decided(graded(0, 0, 0), graded(30, 3, 0))

    assert [test.outcome for test in undecided.tests] == ["not worse", "not worse", "inconclusive", "not worse"]
    assert (undecided.outcome, worse.outcome) == ("inconclusive", "worse")
    assert worse.reasons == ["a: worse"]
    assert undecided.reasons[0].startswith("b: inconclusive, about ")


def test_errored_items_never_make_a_run_pass() -> None:
    one, many = ([None] * errors + [1.0] * (1000 - errors) for errors in (1, 100))

    lost = decided(run(*[1.0] * 1000), run(*many))
    unscored = decided(run(*[1.0] * 60), run(*[None] * 60, name="score"))

    assert decided(run(*[1.0] * 1000), run(*one)).outcome == "not worse"
    assert lost.outcome == "inconclusive"
    assert unscored.unscored == [OVERALL, "score"]
    assert unscored.outcome == "inconclusive"
    assert unscored.reasons[1] == "score: no item has a score in both runs"


def test_point_is_a_hundredth_of_the_range_of_scores() -> None:
    before, after = run(*[1.0, 3.0] * 500), run(*[0.8, 2.8] * 500)

    narrow, wide = (decided(before, after, **criterion).tests[1] for criterion in ({}, {"range": [0, 10]}))

    assert narrow.points[0] == pytest.approx(-20)
    assert wide.points[0] == pytest.approx(-2)
    assert (narrow.outcome, wide.outcome) == ("worse", "not worse")


def test_higher_confidence_needs_more_items() -> None:
    before, after = run(*[1.0] * 60), run(*[1.0] * 50 + [0.0] * 10)

    assert decided(before, after, alpha=0.001).outcome == "inconclusive"
    assert sample_size(5, 40) == 1176  # ((1.95996 + 2.32635) · 40 / 5)²
    assert sample_size(5, 40, 0.001) == 2020  # ((3.29053 + 2.32635) · 40 / 5)²
    assert sample_size(0, 40) is None


@pytest.mark.parametrize(("loss", "expected"), [(0.0, "not worse"), (35.0, "worse")])
def test_simulated_runs_are_decided(loss: float, expected: str) -> None:
    assert {outcome("0 or 1", 200, loss, 20.0, seed) for seed in range(5)} == {expected}


@pytest.mark.verify
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_and_missed_losses_are_at_most_five_percent(kind: str) -> None:
    errors = measure(kind, PAIRS, POINTS)

    assert max(errors.false_alarms, errors.missed, errors.passed) <= 0.05
    shares = (errors.false_alarms, errors.undecided, errors.missed, errors.passed)
    assert f"| {kind} | {errors.items:,} | {' | '.join(f'{share:.1%}' for share in shares)} |" in GUIDE.read_text()
