"""The results of a run by criterion: what is counted, and what the mean is the mean of."""

from typing import Any

import pytest

from jobs.evals.graders import parse_grader
from workers.evals.evaluation import Criterion, Result

CODE = {"type": "python", "name": "code", "source": "def grade(sample, item): return 1"}
ERROR = {"code": "python_grader_runtime_error", "message": "NameError: x"}


def row_of(*results: Result) -> dict[str, Any]:
    criterion = Criterion("code", parse_grader(CODE))
    for result in results:
        criterion.add(result)
    return criterion.row()


def test_score_of_code_that_failed_is_not_in_the_mean() -> None:
    row = row_of(Result(True, 1.0), Result(False, 0.5), *[Result(False, 0.0, ERROR)] * 3)

    assert (row["passed"], row["failed"], row["errored"]) == (1, 1, 3)
    assert (row["scored"], row["mean_score"]) == (2, 0.75)


@pytest.mark.parametrize("results", [[], [Result(False, None, ERROR)], [Result(False, 0.0, ERROR)] * 9])
def test_criterion_that_only_errored_has_no_mean(results: list[Result]) -> None:
    row = row_of(*results)

    assert (row["scored"], row["mean_score"], row["errored"]) == (0, None, len(results))


def test_mean_of_the_largest_scores_is_finite() -> None:
    assert row_of(*[Result(True, 1e300)] * 9)["mean_score"] == pytest.approx(1e300)
