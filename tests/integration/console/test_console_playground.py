"""The playground: two models side by side, stop, hostile and huge answers, what the request was as a program."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.console import HOSTILE, Console, console_of, console_of_shop
from tests.support.interactive_api import MODEL, Shop
from tests.support.proxy import Proxy
from tests.support.system import eventually
from workers.engines.port import Answer, Emit, Request

pytestmark = pytest.mark.verify

ALIAS = "gpt-4o-mini"
SPOILT = f"{HOSTILE} ![x](http://192.0.2.1/x.png) \u202eright to left \u0645\u0631\u062d\u0628\u0627"
#: The pieces of answers by question; to any other one the engine counts.
ANSWERS = {"Hostile": [SPOILT], "Three": ["0 ", "1 ", "2 "], "Huge": ["x" * 100_000] * 100}


def chunk_of(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return json.dumps(chunk).encode()


@pytest.fixture
def shop(make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Return a server whose engine gives the answers of `ANSWERS`."""
    shop = make_shop()

    async def answer(request: Request, emit: Emit) -> Answer:
        question = request.body["messages"][-1]["content"]
        shop.asked.append(json.dumps(request.body))
        for text in ANSWERS.get(question) or (f"{n} " for n in range(1000)):
            await emit(chunk_of({"content": text}))
            await asyncio.sleep(0.05)
        await emit(chunk_of({}, "stop"))
        return Answer(200, b"")

    monkeypatch.setattr(shop.engine, "stream", answer)
    return shop


@pytest.fixture
def console(shop: Shop, browser: Browser) -> Iterator[Console]:
    with console_of_shop(browser, shop) as console:
        yield console


def ask(console: Console, question: str) -> None:
    console.tab.get_by_label("Question").fill(question)
    console.tab.get_by_label("Question").press("Enter")


def copied(tab: Page, button: str, word: str) -> str:
    """Return the text that a button copies, which has the word."""
    read = "navigator.clipboard.readText()"
    tab.get_by_role("button", name=button).click()
    eventually(lambda: word in tab.evaluate(read), 30, f"{button} has done it")
    return str(tab.evaluate(read))


def test_answer_comes_piece_by_piece_and_stop_frees_the_engine(shop: Shop, console: Console) -> None:
    with shop.open():
        tab = console.open(f"/playground?model={MODEL}")
        console.inspect("playground-empty")
        ask(console, "Count")
        answer = tab.locator(".answer")
        expect(answer).to_contain_text("0 1 2")
        assert shop.host._in_flight == 1
        tab.get_by_role("button", name="Stop").click()
        eventually(lambda: shop.host._in_flight == 0, 30, "the engine is free")
        expect(tab.locator(".turn-facts")).to_contain_text("stopped")

        tab.get_by_label("System message").fill("Be brief.")
        tab.get_by_label("Temperature").fill("")
        tab.get_by_label("Stop at").fill("END")
        tab.get_by_label("Seed").fill("7")
        ask(console, "Three")
        expect(answer.nth(1)).to_have_text("0 1 2 ")
        expect(tab.get_by_role("button", name="Copy as Python")).to_have_count(2)
        console.inspect("playground")

    body = json.loads(shop.asked[-1])
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert (body["stop"], body["seed"], body["max_completion_tokens"]) == (["END"], 7, 512)
    assert "temperature" not in body


def test_two_models_answer_side_by_side(shop: Shop, console: Console) -> None:
    with shop.open():
        tab = console.open("/playground")
        tab.get_by_label("Second model").select_option(ALIAS)
        ask(console, "Three")

        for model in (MODEL, ALIAS):
            expect(tab.get_by_label(f"Conversation with {model}").locator(".answer")).to_have_text("0 1 2 ")
        console.inspect("playground-two")
        assert f"second={ALIAS}" in tab.url
        tab.get_by_role("button", name="New conversation").click()
        expect(tab.locator(".turn")).to_have_count(0)


def test_stored_answer_is_rated_and_thumb_and_comment_are_changed(shop: Shop, console: Console) -> None:
    feedback: Any = partial(shop.client.get, "/feedback", cast_to=object)
    with shop.open():
        tab = console.open(f"/playground?model={MODEL}")
        ask(console, "Three")
        expect(tab.locator(".turn-facts")).to_be_visible()
        expect(tab.get_by_role("group", name="Feedback")).to_have_count(0)
        tab.get_by_label("Store the answers").check()
        ask(console, "Three")
        tab.get_by_role("button", name="Bad answer").click()
        expect(tab.get_by_text("Feedback saved")).to_be_visible()
        [bad] = feedback()["data"]
        tab.get_by_label("Comment").fill(HOSTILE)
        tab.get_by_role("button", name="Save the comment").click()
        eventually(lambda: feedback()["data"][0]["comment"] == HOSTILE, 30, "the comment is saved")
        expect(tab.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
        console.inspect("playground-rated")
        tab.get_by_role("button", name="Good answer").click()
        eventually(lambda: feedback()["data"][0]["score"] == 1, 30, "the other thumb is saved")

    [good] = feedback()["data"]
    assert (good["id"], bad["score"], bad["comment"], good["comment"]) == (bad["id"], -1, None, HOSTILE)
    assert good["model"] == MODEL
    chat = shop.client.chat.completions.retrieve(good["target"]["completion_id"])
    assert chat.choices[0].message.content == "0 1 2 "


def test_feedback_on_deleted_answer_shows_error(shop: Shop, console: Console) -> None:
    console.expect_errors("status of 404")
    with shop.open():
        tab = console.open(f"/playground?model={MODEL}")
        tab.get_by_label("Store the answers").check()
        ask(console, "Three")
        expect(tab.get_by_role("group", name="Feedback")).to_be_visible()
        [chat] = shop.client.chat.completions.list().data
        shop.client.chat.completions.delete(chat.id)
        tab.get_by_role("button", name="Good answer").click()

        expect(tab.get_by_role("alert")).to_contain_text("The feedback was not saved")
        expect(tab.get_by_role("button", name="Good answer")).to_be_enabled()


def test_overview_shows_interactive_requests_of_the_model(shop: Shop, console: Console) -> None:
    with shop.open():
        tab = console.open(f"/playground?model={MODEL}")
        ask(console, "Three")
        expect(tab.locator(".answer")).to_have_text("0 1 2 ")
    throughput: Any = partial(shop.client.get, "/throughput", cast_to=object)
    eventually(lambda: throughput()["interactive"], 60, "the request is counted")
    row = console.open().get_by_role("table", name="Interactive requests").get_by_role("row").nth(1)

    expect(row).to_contain_text(MODEL)
    expect(row).to_contain_text(" · ")
    console.inspect("overview-interactive")


def test_hostile_answer_is_text(shop: Shop, console: Console) -> None:
    with shop.open():
        tab = console.open("/playground")
        ask(console, "Hostile")
        expect(tab.locator(".answer")).to_have_text(SPOILT)
        expect(tab.locator(".turn-facts")).to_be_visible()

    assert tab.locator("main img, main script, main a[href*='192.0.2.1']").count() == 0
    console.inspect("playground-hostile")


def test_answer_of_ten_megabytes_does_not_freeze_the_page(shop: Shop, console: Console) -> None:
    with shop.open():
        tab = console.open("/playground")
        ask(console, "Huge")
        expect(tab.get_by_text("of 10,000,000 characters")).to_be_visible(timeout=60_000)
        expect(tab.locator(".turn-facts")).to_be_visible()

    assert len(tab.locator(".answer").inner_text()) == 50_000
    tab.get_by_label("Question").fill("The page goes on")
    expect(tab.get_by_label("Question")).to_have_value("The page goes on")


def test_failed_question_shows_error_and_can_be_resent(shop: Shop, console: Console) -> None:
    console.expect_errors("status of 503")
    tab = console.open("/playground?model=" + MODEL)
    ask(console, "Three")
    expect(tab.get_by_role("alert")).to_contain_text("No live worker serves the model")
    console.inspect("playground-failed")

    with shop.open():
        tab.get_by_role("button", name="Try again").click()
        expect(tab.locator(".answer")).to_have_text("0 1 2 ")


def test_interrupted_answer_stays_until_question_is_retried(shop: Shop, console: Console, browser: Browser) -> None:
    with shop.open(), Proxy(urlsplit(shop.url).port or 0) as proxy:
        deployment = replace(console.deployment, url=f"http://127.0.0.1:{proxy.port}")
        with console_of(browser, deployment) as reader:
            reader.expect_errors("net::ERR_")
            tab = reader.open(f"/playground?model={MODEL}")
            ask(reader, "Count")
            answer = tab.locator(".answer")
            expect(answer).to_contain_text("0 1 2")
            proxy.worsen(0.0, 1.0)
            expect(tab.get_by_role("alert")).to_contain_text("There is no whole answer")
            expect(answer).to_contain_text("0 1 2")
            eventually(lambda: shop.host._in_flight == 0, 30, "the engine is free")
            proxy.mend()
            tab.get_by_role("button", name="Try again").click()

            expect(tab.locator(".turn")).to_have_count(1)
            expect(answer).to_contain_text("3 4 5")
            expect(tab.get_by_role("alert")).to_have_count(0)
            tab.get_by_role("button", name="Stop").click()


def test_copied_program_has_the_question_and_no_key(shop: Shop, console: Console) -> None:
    console.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with shop.open():
        tab = console.open("/playground")
        ask(console, "Three")
        python, curl = copied(tab, "Copy as Python", "import os"), copied(tab, "Copy as curl", "curl http")

    compile(python, "copied", "exec")
    assert '"content": "Three"' in python
    assert '"content": "Three"' in curl
    assert shop.client.api_key not in python + curl
