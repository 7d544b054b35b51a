"""Runs whose criterion is a classification: the metrics of all labels, in the run and in a terminal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from cli.main import app
from jobs.db.engine import Database
from tests.support.eval_client import JUDGE, SCORE, World, evaluating, judged

SENTIMENT = {
    "type": "exact_match",
    "name": "sentiment",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.label }}",
    "labels": ["good", "bad", "Mixed"],
    "ignore_case": True,
}
#: Expected label and answer of each item.
ANSWERS = [
    ("good", "good"), ("good", "Good"), ("good", "bad"), ("bad", "bad"), ("bad", "It is bad."), ("mixed", "good"),
]  # fmt: skip


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path, schema={"type": "object"}, shard_lines=2) as world:
        yield world


def content(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"item": {"label": label}, "sample": {"output_text": text}} for label, text in pairs]


def test_run_has_the_metrics_of_all_labels(world: World) -> None:
    run = world.run(world.eval(SENTIMENT), content(*ANSWERS, ("great", "good")), kind="jsonl")

    done = world.ended(run)

    counts = done.result_counts
    assert (counts.passed, counts.failed, counts.errored) == (3, 3, 1)
    (result,) = (result.to_dict() for result in done.per_testing_criteria_results)
    metrics = result["classification"]
    assert metrics["accuracy"] == 3 / 6
    assert metrics["confusion_matrix"] == {
        "labels": ["good", "bad", "Mixed"],
        "counts": [[2, 1, 0], [0, 1, 0], [1, 0, 0]],
        "other": [0, 1, 0],
    }
    assert metrics["labels"]["good"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert metrics["labels"]["bad"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2})
    assert metrics["labels"]["Mixed"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 3)
    results = [item.results[0] for item in world.output(run)]
    assert [result.sample for result in results[3:6]] == [
        {"expected": "bad", "predicted": "bad"},
        {"expected": "bad", "predicted": None},
        {"expected": "Mixed", "predicted": "good"},
    ]
    assert "The reference is none of the labels: 'great'." in json.dumps(results[6].to_dict())


def test_command_shows_the_metrics_and_the_matrix(world: World) -> None:
    run = world.run(world.eval(SENTIMENT), content(*ANSWERS), kind="jsonl")
    world.ended(run)
    where = ["--url", str(world.client.base_url).removesuffix("/v1/"), "--api-key", world.client.api_key]

    shown = CliRunner().invoke(app, ["evals", "watch", run.id, *where])

    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["bad", "0.500", "0.500", "0.500", "2"] in lines
    assert ["(mean)", "0.389", "0.389", "0.389", "6"] in lines
    assert ["good", "2", "1", "0", "0"] in lines


@pytest.mark.parametrize(
    "criteria",
    [
        [{**SENTIMENT, "labels": [f"label {n}" for n in range(101)]}],
        [{**SENTIMENT, "labels": [f"label {n}" for n in range(51)]}] * 2,
        [{**SENTIMENT, "labels": ["good", "GOOD"]}],
        [{**SENTIMENT, "labels": []}],
        [{"type": "multi", "name": "m", "graders": {"a": SENTIMENT}, "calculate_output": "a"}],
    ],
)
def test_labels_without_bounds_or_sense_are_refused(world: World, criteria: list[dict[str, Any]]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        world.eval(*criteria)

    assert "testing_criteria" in str(refused.value.param)
    assert list(world.client.evals.list()) == []


def test_run_has_the_agreement_of_a_judge_with_people(world: World) -> None:
    world.verdicts[:] = [8.0]
    items = [
        {"item": item, "sample": {"output_text": "x"}} for item in ({"label": 9}, {"label": "pass"}, {"label": 2}, {})
    ]
    run = world.run(world.eval({**SCORE, "human": "{{ item.label }}"}), items, kind="jsonl")

    done = world.ended(run)

    (result,) = (result.to_dict() for result in done.per_testing_criteria_results)
    assert (result["passed"], result["failed"], result["errored"]) == (4, 0, 0)
    assert result["agreement"] == {"items": 3, "share": pytest.approx(2 / 3), "kappa": pytest.approx(0.0)}
    assert result["classification"]["confusion_matrix"]["counts"] == [[2, 0], [1, 0]]
    where = ["--url", str(world.client.base_url).removesuffix("/v1/"), "--api-key", world.client.api_key]
    shown = CliRunner().invoke(app, ["evals", "watch", run.id, *where])
    assert "score: agreement on 3 items: share 0.667, kappa 0.000" in shown.stdout


@pytest.mark.verify
def test_judge_that_prefers_a_position_lets_no_answer_win(world: World) -> None:
    """This judge prefers the first answer, whatever it is."""
    world.verdicts[:] = [judged("first")]
    pairwise = {
        "type": "pairwise",
        "name": "better",
        "model": JUDGE,
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.other }}",
    }
    items = [{"item": {"other": f"b{n}"}, "sample": {"output_text": "a"}} for n in range(2)]
    run = world.run(world.eval(pairwise), items, kind="jsonl")

    done = world.ended(run)

    (result,) = done.per_testing_criteria_results
    assert (result.to_dict()["mean_score"], result.passed) == (0.5, 2)
    winners = [[order["winner"] for order in item.results[0].sample["orders"]] for item in world.output(run)]
    assert winners == [["input", "reference"]] * 2
