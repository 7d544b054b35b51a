"""`nightmill evals run --baseline` against workers over a fake engine: exit codes, reports, and waiting again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cli.client import eval_runs
from cli.client.server import ServerUnavailable
from jobs.db.engine import Database
from tests.integration.test_evals_command import call
from tests.support.eval_client import SAME, World, evaluating, items
from tests.support.inline_deployment import MODEL

CHANGED = ("--prompt", "{{ item.question }}?")


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def baseline(world: World, count: int, **source: Any) -> Any:
    """Return a run whose items all pass."""
    run = world.run(world.eval(SAME), items(*(f"q{n}" for n in range(count))), **source)
    done = world.ended(run)
    assert done.result_counts.passed == done.result_counts.total
    return done


def check(world: World, run: Any, *words: str) -> Any:
    return call(world, "run", run.eval_id, "--baseline", run.id, "--model", MODEL, "--fail-if-worse", *words)


def test_exit_code_is_0_where_run_is_not_worse_and_1_where_it_is(world: World, tmp_path: Path) -> None:
    before = baseline(world, 60)
    junit, summary = tmp_path / "report.xml", tmp_path / "summary.md"
    summary.write_text("before\n")
    reports = ("--junit", str(junit), "--summary", str(summary))

    same = check(world, before, *reports)
    passed = ET.parse(junit).getroot()
    worse = check(world, before, *CHANGED, *reports)
    failed = ET.parse(junit).getroot()

    assert (same.exit_code, worse.exit_code) == (0, 1), same.output
    assert str(worse.exception) == "all criteria: worse; same: worse"
    assert passed.attrib | {"tests": "2", "failures": "0", "skipped": "0"} == passed.attrib
    assert [case.get("name") for case in failed.findall("testcase")][:2] == ["all criteria", "same"]
    assert failed.attrib | {"tests": "52", "failures": "52"} == failed.attrib
    text = summary.read_text()
    assert text.startswith("before\n## Not worse than the baseline\n")
    assert "\n## Worse than the baseline\n" in text
    assert f"/console/evals/{before.eval_id}/runs/{before.id})" in text
    assert "| same | 60 | 1.000 | 0.000 | -100.0 |" in text


def test_exit_code_is_3_where_more_items_have_to_decide(world: World) -> None:
    before = baseline(world, 20)

    few = check(world, before, "--json")
    wide = check(world, before, "--margin", "20")
    lax = call(world, "run", "--baseline", before.id)

    assert (few.exit_code, wide.exit_code, lax.exit_code) == (3, 0, 0), few.output
    assert "same: inconclusive, about 36 more items" in few.stderr
    run, decision = map(json.loads, few.stdout.splitlines())
    assert (decision["run"], decision["baseline"], decision["outcome"]) == (run["id"], before.id, "inconclusive")
    assert [row["items_needed"] for row in decision["criteria"]] == [36, 36]


def test_run_has_items_and_settings_of_its_baseline(world: World) -> None:
    before = baseline(world, 2, sampling_params={"n": 2, "temperature": 0.5, "seed": 7})

    again = json.loads(check(world, before, "--temperature", "0.25", "--json").stdout.splitlines()[0])

    asked = again["data_source"]
    assert asked["sampling_params"] == {"n": 2, "temperature": 0.25, "seed": 7}
    assert asked["input_messages"] == before.to_dict()["data_source"]["input_messages"]
    shown = [item.datasource_item for item in world.output(before)]
    runs = world.client.evals.runs
    assert [item.datasource_item for item in runs.output_items.list(again["id"], eval_id=before.eval_id)] == shown


def test_baseline_that_is_not_complete_or_asked_no_model_creates_nothing(world: World) -> None:
    eval_id = world.eval(SAME)
    given = [{**row, "sample": {"output_text": "x"}} for row in items("q")]
    answered = world.ended(world.run(eval_id, given, kind="jsonl"))
    canceled = world.run(eval_id, items("q"))
    world.client.evals.runs.cancel(canceled.id, eval_id=eval_id)

    unmodelled = call(world, "run", "--baseline", answered.id)
    stopped = check(world, canceled)

    assert "asked no model: name one with --model" in str(unmodelled.exception)
    assert "is canceled: name a run that is completed" in str(stopped.exception)
    assert len(list(world.client.evals.runs.list(eval_id))) == 2
    assert list(world.client.files.list()) == []


@pytest.mark.parametrize(("fault", "code"), [(KeyboardInterrupt(), 130), (ServerUnavailable("no server answers"), 1)])
def test_same_key_waits_for_interrupted_run(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
) -> None:
    before = baseline(world, 60)
    monkeypatch.setenv("NIGHTMILL_IDEMPOTENCY_KEY", "pipeline-7")

    def interrupt(*_words: object) -> None:
        raise fault

    with monkeypatch.context() as broken:
        broken.setattr(eval_runs, "follow", interrupt)
        stopped = check(world, before)
    waited = check(world, before)

    assert (stopped.exit_code, waited.exit_code) == (code, 0), (stopped.exception, waited.exception)
    said = stopped.stderr + str(stopped.exception)
    assert "goes on: the same command with --idempotency-key pipeline-7 waits for it" in said
    assert stopped.stdout.split() == waited.stdout.split()[:1]
    assert len(list(world.client.evals.runs.list(before.eval_id))) == 2
    assert len(list(world.client.files.list())) == 1
