"""The pages in a real browser: pieces of a chat arrive one by one, Stop frees the engine, no secret leaves the tab."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support.shop import MODEL, Shop
from tests.support.system import eventually
from workers.engines.port import Answer, Emit, Request

pytestmark = pytest.mark.verify


@pytest.fixture
def shop(make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Its engine says a number every fifth of a second, until it is stopped."""
    shop = make_shop()

    async def counting(request: Request, emit: Emit) -> Answer:
        said = [message["content"] for message in request.body["messages"]]
        shop.asked.append(" / ".join(said))
        for n in range(3 if said[-1] == "Three" else 1000):
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
            await emit(json.dumps({**chunk, "choices": [{"index": 0, "delta": {"content": f"{n} <b>"}}]}).encode())
            await asyncio.sleep(0.2)
        return Answer(200, b"")

    monkeypatch.setattr(shop.engine, "stream", counting)
    return shop


@pytest.fixture
def page(shop: Shop, browser: Browser) -> Iterator[tuple[Page, list[str], list[str]]]:
    """Yield the page with its key typed in and its models listed, the URLs that it requested, and its errors."""
    page = browser.new_page(viewport={"width": 900, "height": 640})
    urls: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(shop.url.removesuffix("/v1") + "/chat")
    page.fill("#key", shop.client.api_key)
    page.press("#key", "Tab")
    expect(page.locator("#models option").first).to_be_attached(timeout=30_000)  # the list chooses a model
    yield page, urls, wrong
    page.close()


def test_pieces_arrive_one_by_one_and_stop_frees_the_engine_soon(shop: Shop, page: Any) -> None:
    tab, urls, wrong = page
    with shop.open():
        tab.fill("#model", MODEL)
        tab.fill("#prompt", "Count")
        tab.click("#send")
        answer = tab.locator(".assistant")
        expect(answer).to_contain_text("0 <b>1 <b>")
        early = answer.inner_text()
        expect(answer).to_contain_text("4 <b>")
        assert shop.host._in_flight == 1
        _screenshot(tab, "chat")

        tab.click("#stop")
        began = time.monotonic()
        eventually(lambda: shop.host._in_flight == 0, 5, "the engine is free")
        took = time.monotonic() - began

        expect(tab.locator("#status")).to_have_text("Stopped.")
        tab.fill("#prompt", "Three")
        tab.press("#prompt", "Enter")
        expect(answer.nth(1)).to_have_text("0 <b>1 <b>2 <b>")
        expect(tab.locator("#stop")).to_be_disabled()

    assert took < 3, f"free after {took:.2f} s"  # a second on a machine that does nothing else
    assert "4" not in early
    assert wrong == []
    assert {url.split("/", 3)[3] for url in urls} == {
        "chat", "chat/chat.css", "chat/chat.js", "v1/models", "v1/chat/completions",
    }  # fmt: skip
    assert tab.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
    assert not any(shop.client.api_key in url for url in urls)


def test_temperature_and_token_limit_are_sent_as_the_page_shows_them_unless_they_are_empty(
    shop: Shop, page: Any
) -> None:
    tab, _, _ = page
    bodies: list[Any] = []
    tab.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    tab.fill("#model", MODEL)
    with shop.open():
        for temperature in ("0.7", ""):
            expect(tab.locator("#max_tokens")).to_have_value("512")
            tab.fill("#temperature", temperature)
            tab.fill("#prompt", "Three")
            tab.click("#send")
            expect(tab.locator("#stop")).to_be_enabled()
            expect(tab.locator("#stop")).to_be_disabled()

    assert [(body.get("temperature"), body["max_completion_tokens"]) for body in bodies] == [(0.7, 512), (None, 512)]


def test_what_went_wrong_is_said(shop: Shop, page: Any) -> None:
    tab, _, _ = page
    tab.fill("#prompt", "Hello")
    tab.click("#send")

    expect(tab.locator("#status")).to_contain_text("No live worker serves the model")


def test_a_list_of_models_that_comes_late_takes_back_only_what_an_earlier_list_said(shop: Shop, page: Any) -> None:
    tab, _, _ = page
    held: list[Route] = []
    tab.fill("#key", "nm-of-nobody")
    tab.press("#key", "Tab")
    expect(tab.locator("#status")).to_contain_text("Incorrect API key")
    tab.fill("#key", shop.client.api_key)
    tab.press("#key", "Tab")
    expect(tab.locator("#status")).to_have_text("")

    def hold(route: Route) -> None:
        held.append(route)

    tab.route("**/v1/models", hold)
    tab.press("#key", "Space")  # a key is trimmed: another value, the same key
    tab.press("#key", "Tab")
    eventually(lambda: tab.wait_for_timeout(10) or held, 5, "the list is asked for")
    tab.fill("#prompt", "Hello")
    tab.click("#send")
    expect(tab.locator("#status")).to_contain_text("No live worker serves the model")
    tab.evaluate("document.getElementById('models').replaceChildren()")
    held[0].continue_()
    expect(tab.locator("#models option").first).to_be_attached()

    expect(tab.locator("#status")).to_contain_text("No live worker serves the model")


def test_the_model_is_shown_neither_what_failed_nor_a_conversation_that_was_left_amid_an_answer(
    shop: Shop, page: Any
) -> None:
    tab, _, _ = page
    tab.fill("#model", MODEL)
    tab.fill("#prompt", "In vain")
    tab.click("#send")
    expect(tab.locator("#status")).to_contain_text("No live worker serves the model")
    with shop.open():
        tab.fill("#prompt", "Count")
        tab.click("#send")
        expect(tab.locator(".assistant")).to_contain_text("0 <b>1 <b>")
        tab.click("#anew")
        expect(tab.locator("#stop")).to_be_disabled()
        tab.fill("#prompt", "Three")
        tab.click("#send")
        expect(tab.locator(".assistant")).to_have_text("0 <b>1 <b>2 <b>")
        expect(tab.locator("#stop")).to_be_disabled()
        tab.fill("#prompt", "Three")
        tab.click("#send")
        expect(tab.locator(".assistant").nth(1)).to_have_text("0 <b>1 <b>2 <b>")

    assert shop.asked == ["Count", "Three", "Three / 0 <b>1 <b>2 <b> / Three"]


def test_the_key_is_asked_for_in_words_and_the_question_stays(shop: Shop, page: Any) -> None:
    tab, urls, wrong = page
    tab.fill("#key", "")
    tab.fill("#prompt", "What is it?")
    tab.click("#send")

    expect(tab.locator("#status")).to_contain_text("Type your API key first")
    expect(tab.locator("#key")).to_be_focused()
    expect(tab.locator("#prompt")).to_have_value("What is it?")
    assert not [url for url in urls if url.endswith("/completions")]
    assert wrong == []


def test_what_failed_can_be_sent_again(shop: Shop, page: Any) -> None:
    tab, _, _ = page
    tab.fill("#model", MODEL)
    tab.fill("#prompt", "Three")
    tab.click("#send")
    expect(tab.locator("#status")).to_contain_text("No live worker serves the model")
    expect(tab.locator("#prompt")).to_have_value("Three")
    expect(tab.locator(".said")).to_have_count(0)

    with shop.open():
        tab.click("#send")
        expect(tab.locator(".assistant")).to_have_text("0 <b>1 <b>2 <b>")
        expect(tab.locator("#prompt")).to_have_value("")
        expect(tab.locator("#stop")).to_be_disabled()


def test_the_entrance_leads_to_the_reference_and_an_operation_can_be_tried_there(
    shop: Shop, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.pages.console_files.BUILD", tmp_path / "none")
    tab, urls, wrong = page
    urls.clear()
    tab.goto(shop.url.removesuffix("/v1") + "/")
    _screenshot(tab, "entrance")
    tab.get_by_role("link", name="API reference").click()
    tab.get_by_placeholder("Filter by tag or path").fill("Models")  # only operations near the window are drawn
    operation = tab.locator("#operations-Models-list_models_v1_models_get")
    expect(operation).to_be_visible(timeout=60_000)
    tab.click("button.authorize")
    tab.fill("input[aria-label='auth-bearer-value']", shop.client.api_key)
    tab.click(".auth-btn-wrapper button.authorize")
    tab.click(".btn-done")
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()

    expect(operation.locator(".live-responses-table")).to_contain_text(MODEL)
    _screenshot(tab, "reference")
    assert wrong == []
    assert {url.split("/", 3)[2] for url in urls} == {shop.url.split("/", 3)[2]}
    assert tab.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def _screenshot(tab: Page, name: str) -> None:
    if folder := os.environ.get("NIGHTMILL_TEST_SCREENSHOTS"):
        tab.screenshot(path=f"{folder}/{name}.png")


def test_the_page_runs_nothing_of_others(shop: Shop) -> None:
    said = httpx2.get(shop.url.removesuffix("/v1") + "/chat")

    policy = said.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert said.headers["x-content-type-options"] == "nosniff"
