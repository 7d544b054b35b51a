"""The rules of gates: what a minimum decides, and what errored samples and few items leave open."""

from typing import Any

import pytest

from jobs.evals.comparison import OVERALL, compare, pair_items
from jobs.evals.comparison_process import ComparedRuns
from jobs.evals.runs import Evaluation, Sampled
from jobs.promotions import gates
from jobs.promotions.gates import CriterionScores, Minimum, NotWorse

MINIMUM = Minimum(type="minimum", score=0.9)


def evaluation(*criteria: dict[str, Any], samples: int = 1) -> Evaluation:
    sampled = Sampled(endpoint="/v1/chat/completions", model="m", n=samples)
    return Evaluation(eval_id="eval_1", items="i", item_schema={}, criteria=list(criteria), sampled=sampled)


def scores(mean: float | None, scored: int, samples: int | None = None) -> CriterionScores:
    return CriterionScores(mean, scored, scored if samples is None else samples, scored, 0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (scores(0.9, 20), "passed"),
        (scores(0.89, 20), "failed"),
        (scores(1.0, 19), "inconclusive"),
        (scores(None, 0, 40), "inconclusive"),
        (scores(1.0, 90, 100), "passed"),  # were the errored ones all 0, the mean would be 0.9
        (scores(1.0, 89, 100), "inconclusive"),
        (scores(0.5, 80, 100), "failed"),  # were the errored ones all 1, the mean would be 0.6
    ],
)
def test_minimum_is_decided_for_any_worth_of_errored_samples(given: CriterionScores, outcome: str) -> None:
    report = gates.judge_minimum(MINIMUM, None, given)

    assert report.outcome == outcome
    assert [(row.criterion, row.outcome, row.candidate) for row in report.criteria] == [(OVERALL, outcome, given.mean)]
    assert len(report.reasons) == 1


def test_scores_of_all_criteria_are_the_share_that_passes() -> None:
    counts = {"pass": 30, "fail": 10, "error:rate_limit": 5}

    assert gates.scores_of(evaluation(), None, counts, []) == CriterionScores(0.75, 40, 45, 40, 0.0, 1.0)


def test_scores_of_a_criterion_have_its_range_and_its_items() -> None:
    row = {"testing_criteria": "tone", "passed": 30, "failed": 8, "errored": 2, "scored": 38, "mean_score": 6.5}

    given = gates.scores_of(evaluation({"name": "tone", "range": [1, 10]}, samples=2), "tone", {}, [row])

    assert given == CriterionScores(6.5, 38, 40, 19, 1, 10)


def test_comparison_is_of_the_criterion_that_the_gate_names() -> None:
    def graded(tone: float, facts: float) -> list[dict[str, Any]]:
        results = [{"name": name, "score": score} for name, score in (("tone", tone), ("facts", facts))]
        return [{"id": f"o{n}", "datasource_item": {"n": n}, "status": "pass", "results": results} for n in range(100)]

    pairing = pair_items(graded(1.0, 1.0), graded(1.0, 0.0))
    compared = ComparedRuns(100, 100, 0, 0, compare(pairing.criteria, pairing.pairs), [])
    criteria = [{"name": "tone"}, {"name": "facts"}]
    rule = NotWorse(type="not_worse_than_incumbent")

    outcomes = [gates.judge_comparison(rule, name, compared, criteria).outcome for name in (None, "tone", "facts")]
    unscored = gates.judge_comparison(rule, "tone", ComparedRuns(0, 0, 0, 0, [], []), criteria)

    assert outcomes == ["failed", "passed", "failed"]
    assert (unscored.outcome, unscored.reasons) == ("inconclusive", ["tone: no item has a score in both runs"])
