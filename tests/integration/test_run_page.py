"""The report of a run in a real browser: counts, criteria, items page by page; hostile text stays text."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.db.engine import Database
from jobs.queues import Queue
from tests.support.evaluating import SAME, SCORE, World, evaluating
from workers.engines.port import refusal

pytestmark = pytest.mark.verify

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


@pytest.fixture
def tab(browser: Browser) -> Iterator[tuple[Page, list[str], list[str]]]:
    """Yield a tab, the URLs that it requests, and its errors."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    urls: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page, urls, errors
    page.close()


def content() -> list[dict[str, Any]]:
    """Return 25 items with their samples; two of them are wrong."""
    rows = []
    for n in range(25):
        answer = "no" if n in (3, 22) else HOSTILE
        rows.append({"item": {"question": HOSTILE, "answer": HOSTILE}, "sample": {"output_text": answer}})
    return rows


def open_report(page: Page, world: World, run: Any, key: str = "") -> None:
    page.goto(run.report_url)
    page.fill("#key", key or world.client.api_key)
    page.press("#key", "Tab")


def test_report_shows_counts_criteria_and_items_page_by_page(world: World, tab: Any) -> None:
    page, urls, errors = tab
    world.verdicts[:] = [refusal(500, "It broke.", code="server_error"), 9.0]
    graders = ({**SAME, "name": f"same {HOSTILE}"}, SCORE)
    run = world.ended(world.run(world.eval(*graders, metadata={"x": HOSTILE}), content(), kind="jsonl"))
    counts = run.result_counts

    open_report(page, world, run)

    expect(page.locator("#items details")).to_have_count(20)
    expect(page.locator("#counts")).to_have_text(f"25total{counts.passed}passed{counts.failed}failed1errored")
    expect(page.locator("#criteria tr").first).to_contain_text(f"same {HOSTILE}")
    expect(page.locator("#usage tr")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text("completed")
    page.locator("#items details").nth(3).locator("summary").click()
    expect(page.locator("#items details[open] pre").first).to_contain_text(HOSTILE[:18])
    if folder := os.environ.get("NIGHTMILL_TEST_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/run.png")

    page.click("#next")
    expect(page.locator("#items details")).to_have_count(5)
    expect(page.locator("#items summary").first).to_contain_text("item 20")
    expect(page.locator("#next")).to_be_disabled()
    page.click("#previous")
    expect(page.locator("#items details")).to_have_count(20)
    page.select_option("#filter", "error")
    expect(page.locator("#items details")).to_have_count(1)
    expect(page.locator("#items summary")).to_contain_text("model_grader_server_error")

    assert page.title() == "Nightmill evaluation run"
    assert page.locator("main img, main script").count() == 0
    assert errors == []
    assert {url.split("/", 3)[2] for url in urls} == {run.report_url.split("/", 3)[2]}
    assert not any(world.client.api_key in url for url in urls)
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def test_report_follows_a_run_that_goes_on(world: World, tab: Any) -> None:
    page, _, errors = tab
    world.mill.elsewhere = lambda _task, queue, _arguments: queue == Queue.EVALUATE
    run = world.run(world.eval(SAME), content(), kind="jsonl")
    world.mill.until(lambda: world.mill.job(run.id).state == "running", 60)

    open_report(page, world, run)
    expect(page.locator("#status")).to_contain_text("The run goes on")
    expect(page.locator("#items details")).to_have_count(0)
    world.mill.elsewhere = lambda *_: False
    world.ended(run)

    expect(page.locator("#items details")).to_have_count(20, timeout=30_000)
    expect(page.locator("#status")).to_have_text("")
    assert errors == []


def test_report_says_what_is_wrong(world: World, tab: Any) -> None:
    page, _, _ = tab
    run = world.ended(world.run(world.eval(SAME), content()[:1], kind="jsonl"))

    page.goto(run.report_url)
    expect(page.locator("#status")).to_contain_text("Type your API key")
    expect(page.locator("#key")).to_be_focused()
    open_report(page, world, run, key="nm-of-nobody")
    expect(page.locator("#status")).to_contain_text("Incorrect API key")
    expect(page.locator("#run")).to_be_hidden()
    page.goto(run.report_url.split("#")[0])
    page.reload()
    expect(page.locator("#status")).to_contain_text("names no run")
