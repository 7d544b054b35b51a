"""The benchmark of graders measures graders that give scores."""

import pytest

from bench import evals
from jobs.evals.graders import parse_grader
from jobs.evals.graders.base import Ports
from jobs.evals.grading import grade


@pytest.mark.parametrize("definition", evals.definitions(), ids=lambda row: row.get("evaluation_metric") or row["type"])
@pytest.mark.first(1)
def test_each_grader_scores_every_case(definition: evals.Row) -> None:
    grader = parse_grader({"name": "g", **definition})
    answers = evals.answers_of(definition)

    grades = [grade(grader, *case, answers, Ports(embedding_model="vectors")) for case in evals.cases(5)]

    assert [result.error for result in grades] == [None] * 5
    assert all(result.score is not None for result in grades)
