"""The console's pages of evaluations: a new one from a dropped file, a run with its items, and two runs compared."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.evals import RunCreateResponse
from playwright.sync_api import expect

from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.queues import Queue
from tests.support.console import HOSTILE, Console, Deployment, deployed
from tests.support.eval_client import SAME, SCHEMA
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL

pytestmark = pytest.mark.verify

ALTERNATIVE = "other-model"


@pytest.fixture
def deployment(sqlite: Database, tmp_path: Path) -> Iterator[Deployment]:
    """Return a deployment with two models."""
    with deployed(sqlite, tmp_path, FakeEngine((MODEL, ALTERNATIVE))) as deployment:
        yield deployment


def create_run(deployment: Deployment, eval_id: str, answers: list[str], name: str) -> RunCreateResponse:
    """Create a run over answers that should be the hostile text."""
    content: Any = [
        {"item": {"question": f"q{n} {HOSTILE}", "answer": HOSTILE}, "sample": {"output_text": answer}}
        for n, answer in enumerate(answers)
    ]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    return deployment.client.evals.runs.create(eval_id, name=name, data_source=source)


def make_run(deployment: Deployment, eval_id: str, answers: list[str], name: str) -> str:
    """Grade answers that should be the hostile text; return the id of the run."""
    run = create_run(deployment, eval_id, answers, name)
    deployment.inline.drain(run.id, timeout=60)
    return run.id


def make_eval(deployment: Deployment) -> str:
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    criteria: Any = [{**SAME, "name": f"same {HOSTILE}"}]
    return deployment.client.evals.create(
        name=f"greetings {HOSTILE}", data_source_config=config, testing_criteria=criteria
    ).id


def test_run_shows_counts_criteria_and_items_as_text(console: Console, deployment: Deployment) -> None:
    eval_id = make_eval(deployment)
    run_id = make_run(deployment, eval_id, [HOSTILE] * 23 + ["no", "no"], "first")
    tab = console.open("/evals")
    tab.get_by_role("link", name="greetings").press("Enter")
    expect(tab.get_by_role("table", name="Runs")).to_contain_text("92 % pass")
    console.inspect("eval")
    tab.get_by_role("link", name="first").press("Enter")

    items = tab.locator("details.item")
    expect(tab.get_by_role("table", name="Criteria")).to_contain_text(HOSTILE)
    expect(items).to_have_count(20)
    expect(items.first.locator("summary")).to_contain_text("q0 <img")
    expect(items.first.locator("summary")).to_contain_text("→ <img")
    tab.get_by_role("button", name="Load more").click()
    expect(items).to_have_count(25)
    tab.get_by_label("Status").select_option("fail")
    expect(items).to_have_count(2)
    assert tab.url.endswith(f"/evals/{eval_id}/runs/{run_id}?status=fail")
    items.first.locator("summary").press("Enter")
    expect(tab.get_by_role("region", name="Item", exact=True)).to_contain_text("onerror")
    expect(tab.get_by_role("region", name="Answer")).to_have_text("no")
    console.inspect("run")
    tab.reload()
    expect(items).to_have_count(2)


def test_report_url_asks_for_a_key_and_follows_a_run_that_goes_on(visitor: Console, deployment: Deployment) -> None:
    run = create_run(deployment, make_eval(deployment), [HOSTILE], "first")
    tab = visitor.tab
    tab.goto(run.report_url)
    tab.get_by_label("API key").fill(deployment.key)
    tab.keyboard.press("Enter")
    expect(visitor.heading).to_contain_text("first")
    expect(tab.get_by_text("The run goes on")).to_be_visible()
    assert tab.url == run.report_url

    deployment.inline.drain(run.id, timeout=60)

    expect(tab.locator("details.item")).to_have_count(1)
    expect(tab.get_by_text("The run goes on")).to_have_count(0)


def test_two_runs_are_compared_with_intervals(console: Console, deployment: Deployment) -> None:
    eval_id = make_eval(deployment)
    first = make_run(deployment, eval_id, [HOSTILE] * 10, "first")
    second = make_run(deployment, eval_id, [HOSTILE] * 4 + ["no"] * 6 + ["more"], "second")
    tab = console.open(f"/evals/{eval_id}/runs/{second}?tab=comparison")

    expect(tab.get_by_label("Compare with")).to_have_value(first)
    expect(tab.get_by_text(f"nightmill evals compare {first} {second}")).to_be_visible()
    table = tab.get_by_role("table", name="Comparison by criterion")
    expect(table.get_by_role("row").nth(1)).to_contain_text("-0.600")
    expect(table.get_by_role("row").nth(1)).to_contain_text("-0.865 to -0.135")
    expect(table.get_by_role("row").nth(1)).to_contain_text("inconclusive, about 10 more items")
    expect(table.locator(".good, .bad")).to_have_count(0)
    expect(tab.get_by_role("main")).to_contain_text("10 items in both runs; 1 item only in this one")
    regressions = tab.locator("details.item")
    expect(regressions).to_have_count(6)
    expect(regressions.first.locator("summary")).to_contain_text("→ no")
    expect(tab.get_by_role("heading", name="Largest regressions")).to_be_visible()
    expect(table.get_by_role("row").nth(1)).to_contain_text("0 / 6")
    regressions.first.locator("summary").press("Enter")
    other, this = (tab.get_by_role("region", name=name, exact=True) for name in ("Other run", "This run"))
    expect(other.get_by_role("region", name="Answer")).to_have_text(HOSTILE)
    expect(this.get_by_role("region", name="Answer")).to_have_text("no")
    console.inspect("comparison")


def test_verdict_has_a_word_and_a_color(console: Console, deployment: Deployment) -> None:
    eval_id = make_eval(deployment)
    first = make_run(deployment, eval_id, ["no"] * 20, "first")
    second = make_run(deployment, eval_id, [HOSTILE] * 20, "second")
    tab = console.open(f"/evals/{eval_id}/runs/{second}?tab=comparison&baseline={first}")

    verdict = tab.get_by_role("table", name="Comparison by criterion").get_by_text("better", exact=True)
    expect(verdict).to_have_count(2)
    expect(verdict.first).to_have_class("good")


def test_evaluation_is_made_with_its_first_run(console: Console, deployment: Deployment, tmp_path: Path) -> None:
    with deployment.inline.db.write() as session:
        workers.store_models(session, {MODEL: False}, Queue.GENERATE)
    tab = console.open("/evals")
    expect(tab.get_by_text("nightmill evals run")).to_be_visible()
    console.inspect("evals-empty")
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps({"item": {"question": "q", "answer": "echo"}}) + "\n")
    tab.get_by_role("link", name="New evaluation").first.click()
    tab.get_by_label("Name of the evaluation").fill("capitals")
    tab.locator("input[type=file]").set_input_files(file)
    expect(tab.get_by_label("Items", exact=True)).to_contain_text("items.jsonl")
    console.inspect("eval-new")
    tab.get_by_label("Model", exact=True).select_option(MODEL)
    tab.get_by_role("button", name="Create and run").click()

    expect(tab.get_by_role("heading", name="capitals")).to_be_visible()
    [row] = deployment.client.evals.list().data
    [run] = deployment.client.evals.runs.list(row.id).data
    deployment.inline.drain(run.id, timeout=60)
    expect(tab.get_by_role("table", name="Criteria")).to_contain_text("ilike reference")
    expect(tab.locator("details.item")).to_have_count(1)


def test_run_is_repeated_with_another_model_and_compared(console: Console, deployment: Deployment) -> None:
    with deployment.inline.db.write() as session:
        workers.store_models(session, {MODEL: False, ALTERNATIVE: False}, Queue.GENERATE)
    eval_id = make_eval(deployment)
    content: Any = [{"item": {"question": "q", "answer": "a"}}]
    messages: Any = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}
    source: Any = {"type": "completions", "model": MODEL, "input_messages": messages}
    source |= {"source": {"type": "file_content", "content": content}, "sampling_params": {"temperature": 0}}
    first = deployment.client.evals.runs.create(eval_id, name="first", data_source=source)
    deployment.inline.drain(first.id, timeout=60)
    tab = console.open(f"/evals/{eval_id}/runs/{first.id}")

    tab.get_by_role("button", name="Run with another model").click()
    dialog = tab.get_by_role("dialog", name="Run with another model")
    dialog.get_by_label("Model").select_option(ALTERNATIVE)
    console.inspect("run-again")
    dialog.get_by_role("button", name="Run", exact=True).click()

    expect(dialog).to_have_count(0)
    expect(tab).to_have_url(re.compile(f"baseline={first.id}$"))
    [run] = [run for run in deployment.client.evals.runs.list(eval_id) if run.id != first.id]
    assert run.data_source.to_dict() == first.data_source.to_dict() | {"model": ALTERNATIVE}
    deployment.inline.drain(run.id, timeout=60)
    tab.get_by_role("tab", name="Comparison").click()
    expect(tab.get_by_label("Compare with")).to_have_value(first.id)
    expect(tab.get_by_role("main")).to_contain_text("1 item in both runs")


def test_run_is_deleted_after_a_question(console: Console, deployment: Deployment) -> None:
    eval_id = make_eval(deployment)
    run_id = make_run(deployment, eval_id, [HOSTILE], "first")
    tab = console.open(f"/evals/{eval_id}/runs/{run_id}")

    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the run").click()

    expect(tab.get_by_text("No run yet")).to_be_visible()
    assert deployment.client.evals.runs.list(eval_id).data == []
