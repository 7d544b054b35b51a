"""Two runs of evals are compared over HTTP by the statistics of the command."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.evals import comparison as route
from jobs.db.engine import Database
from jobs.evals import comparison, comparison_process, significance
from jobs.security import keys
from tests.support.eval_client import SAME, World, evaluating


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def samples(*answers: str, start: int = 0) -> list[dict[str, Any]]:
    """Return items whose answer should be `yes`, each with its sample."""
    return [
        {"item": {"question": f"q{number}", "answer": "yes"}, "sample": {"output_text": answer}}
        for number, answer in enumerate(answers, start)
    ]


def compare(world: World, run: Any, baseline: str, key: str | None = None) -> tuple[int, dict[str, Any]]:
    response = world.client._client.get(
        f"{world.client.base_url}evals/{run.eval_id}/runs/{run.id}/comparison",
        params={"baseline": baseline},
        headers={"Authorization": f"Bearer {key or world.client.api_key}"},
    )
    return response.status_code, response.json()


def test_runs_are_compared_over_the_items_that_both_have(world: World) -> None:
    eval_id = world.eval(SAME)
    first = world.ended(world.run(eval_id, samples("yes", "no", "no", "no", "yes"), kind="jsonl"))
    second = world.ended(world.run(eval_id, samples("no", "yes", "yes", "no", "yes", "no", start=1), kind="jsonl"))

    status, shown = compare(world, second, first.id)

    assert status == 200
    assert (shown["run_id"], shown["baseline_run_id"], shown["baseline_eval_id"]) == (second.id, first.id, eval_id)
    assert (shown["items"], shown["only_in_baseline"], shown["only_in_run"]) == (4, 1, 2)
    assert [row["criterion"] for row in shown["data"]] == [comparison.OVERALL, "same"]
    [_, row] = shown["data"]
    low, high = significance.interval([0, 1, 1, -1])
    assert (row["items"], row["samples"], row["baseline"], row["run"], row["difference"]) == (4, 4, 0.25, 0.5, 0.25)
    assert (row["low"], row["high"], row["better"], row["worse"]) == (low, high, 2, 1)
    assert (row["p_value"], row["p_adjusted"]) == (1.0, 1.0)
    assert (row["verdict"], row["is_significant"]) == ("inconclusive", False)
    assert row["items_needed"] == max(significance.items_needed([0, 1, 1, -1], 1) or 0, comparison.MIN_ITEMS) - 4
    [worse] = shown["regressions"]
    assert (worse["baseline_item_id"], worse["run_item_id"]) == (world.output(first)[4].id, world.output(second)[3].id)


def test_single_improved_item_is_inconclusive(world: World) -> None:
    eval_id = world.eval(SAME)
    one, other = (world.ended(world.run(eval_id, samples(text), kind="jsonl")) for text in ("no", "yes"))
    few, many = (world.ended(world.run(eval_id, samples(*[text] * 20), kind="jsonl")) for text in ("no", "yes"))

    [_, undecided] = compare(world, other, one.id)[1]["data"]
    [_, decided] = compare(world, many, few.id)[1]["data"]

    assert (undecided["difference"], undecided["verdict"], undecided["is_significant"]) == (1.0, "inconclusive", False)
    assert undecided["items_needed"] == 19
    assert (decided["verdict"], decided["is_significant"], decided["items_needed"]) == ("better", True, None)
    assert [row["verdict"] for row in compare(world, few, many.id)[1]["data"]] == ["worse", "worse"]


def test_incomparable_runs_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    eval_id = world.eval(SAME)
    run = world.ended(world.run(eval_id, samples("yes", "no"), kind="jsonl"))
    live = world.run(eval_id, samples("yes"), kind="jsonl")
    with world.inline.db.write() as session:
        stranger = keys.create_key(session, "other")

    refused = [compare(world, run, "evalrun_x"), compare(world, run, live.id), compare(world, live, run.id)]
    refused += [compare(world, run, run.id, stranger), compare(world, run, "")]
    monkeypatch.setattr(route, "MAX_SCORES", 3)
    refused.append(compare(world, run, run.id))
    monkeypatch.setattr(route, "MAX_SCORES", 4)

    assert [(status, body["error"]["code"], body["error"]["param"]) for status, body in refused[:3]] == [
        (404, "not_found", "baseline"),
        (409, "run_not_ended", "baseline"),
        (409, "run_not_ended", "run_id"),
    ]
    assert [status for status, _ in refused[3:]] == [404, 400, 400]
    assert refused[5][1]["error"]["code"] == "run_too_large"
    assert compare(world, run, run.id)[0] == 200

    limits = replace(comparison_process._LIMITS, memory_bytes=1 << 20)  # an interpreter needs more
    monkeypatch.setattr(comparison_process, "_LIMITS", limits)
    status, body = compare(world, run, run.id)
    assert (status, body["error"]["code"]) == (400, "comparison_gave_up")
