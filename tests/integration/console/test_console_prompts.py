"""The pages of prompts: made, changed in versions that are compared, tried with a model, and shown as programs."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, expect

from tests.support.console import HOSTILE, Console, console_of_shop
from tests.support.fake_engine import reply
from tests.support.interactive_api import MODEL, Shop
from tests.support.system import eventually
from workers.engines.port import Answer, Request

pytestmark = pytest.mark.verify

INSTRUCTIONS = "You answer the tickets of a lamp shop.\nWrite to {{customer}} by name.\nBe friendly."
CONTENT: dict[str, Any] = {
    "model": MODEL,
    "instructions": INSTRUCTIONS,
    "messages": [{"role": "user", "content": "Ticket of {{customer}}: {{ticket}}"}],
    "parameters": {"temperature": 0.2, "max_output_tokens": 300},
    "variables": [{"name": "customer"}, {"name": "ticket", "default": "Does the lamp fit an E14 bulb?"}],
}
CHANGED = INSTRUCTIONS.replace("friendly", "brief")


def repeat(request: Request) -> Answer:
    """Answer with the last message of a response."""
    text = str(request.body["input"][-1]["content"])
    return reply(request.url, request.body, text, voice=text)


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    shop = make_shop(engine={"fault": repeat})
    with shop.open():
        yield shop


@pytest.fixture
def console(shop: Shop, browser: Browser) -> Iterator[Console]:
    with console_of_shop(browser, shop) as console:
        yield console


def post(shop: Shop, path: str, body: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", shop.client.post(f"/prompts{path}", body=body, cast_to=object))


def prompt_of(shop: Shop, prompt_id: str) -> dict[str, Any]:
    return cast("dict[str, Any]", shop.client.get(f"/prompts/{prompt_id}", cast_to=object))


def make_prompt(shop: Shop, name: str = "Replies to tickets") -> str:
    """Make a prompt with two versions; return its id."""
    prompt_id = str(post(shop, "", {"name": name, **CONTENT})["id"])
    post(shop, f"/{prompt_id}/versions", {**CONTENT, "instructions": CHANGED, "parameters": {"temperature": 0.7}})
    return prompt_id


def test_prompt_is_made_changed_and_compared(console: Console, shop: Shop) -> None:
    tab = console.open("/prompts")
    expect(tab.get_by_role("heading", name="No prompts yet")).to_be_visible()
    console.inspect("prompts-empty")
    tab.get_by_role("link", name="New prompt").first.click()
    tab.get_by_label("Name of the prompt").fill("Replies to tickets")
    tab.get_by_label("Model", exact=True).select_option(MODEL)
    tab.get_by_label("Instructions").fill(INSTRUCTIONS)
    tab.get_by_label("Message 1", exact=True).fill("Ticket of {{customer}}: {{ticket}}")
    tab.get_by_label("Default of ticket").fill(CONTENT["variables"][1]["default"])
    tab.get_by_label("Temperature").fill("0.2")
    tab.get_by_label("Longest answer in tokens").fill("300")
    tab.get_by_label("Tools", exact=True).fill("[")
    create = tab.get_by_role("button", name="Create the prompt")
    expect(create).to_be_disabled()
    expect(tab.get_by_text("This is not JSON")).to_be_visible()
    tab.get_by_label("Tools", exact=True).fill("")
    console.inspect("prompt-new")
    create.click()

    expect(console.heading).to_have_text("Replies to tickets")
    expect(tab.get_by_role("region", name="Instructions")).to_have_text(INSTRUCTIONS)
    expect(tab.get_by_role("table", name="Variables")).to_contain_text("E14")
    console.inspect("prompt")
    tab.get_by_role("link", name="New version").click()
    tab.get_by_role("textbox", name="Instructions").fill(CHANGED)
    tab.get_by_role("button", name="Create the version").click()

    difference = tab.get_by_role("region", name="Difference of Instructions")
    expect(difference.locator(".removed mark")).to_have_text("friendly")
    expect(difference.locator(".added mark")).to_have_text("brief")
    expect(tab.get_by_role("region", name="Difference of")).to_have_count(1)
    console.inspect("prompt-compare")
    console.check_reload()
    [row] = cast("Any", shop.client.get("/prompts", cast_to=object))["data"]
    assert (row["default_version"], row["latest_version"]) == ("1", "2")
    assert row["version"]["parameters"] == CONTENT["parameters"]
    assert [each["default"] for each in row["version"]["variables"]] == [None, "Does the lamp fit an E14 bulb?"]


def test_refused_prompt_names_the_field(console: Console) -> None:
    console.expect_errors("status of 400")
    tab = console.open("/prompts/new")
    tab.get_by_label("Instructions").fill("Hello")
    tab.get_by_label("Other parameters").fill('{"colour": "red"}')
    tab.get_by_role("button", name="Create the prompt").click()

    expect(tab.get_by_role("alert")).to_contain_text("colour")
    expect(tab.get_by_label("Instructions")).to_have_value("Hello")


def test_default_version_and_labels_move(console: Console, shop: Shop) -> None:
    prompt_id = make_prompt(shop)
    tab = console.open(f"/prompts/{prompt_id}?tab=versions")
    tab.get_by_role("button", name="Make default version 2").click()
    expect(tab.get_by_role("row", name="Version 2")).to_contain_text("default")
    expect(tab.get_by_role("button", name="Make default version 1")).to_be_enabled()

    for number, (name, version) in enumerate((("production", "1"), ("staging", "2")), 1):
        tab.get_by_role("button", name="Edit labels").click()
        tab.get_by_role("button", name="Add a label").click()
        tab.get_by_label(f"Label {number}", exact=True).fill(name)
        tab.get_by_label(f"Version of label {number}").select_option(version)
        tab.get_by_role("button", name="Save the labels").click()
        expect(tab.get_by_role("dialog")).to_have_count(0)
    expect(tab.get_by_role("row", name="Version 1")).to_contain_text("production")
    console.inspect("prompt-versions")
    prompt = prompt_of(shop, prompt_id)
    assert (prompt["default_version"], prompt["labels"]) == ("2", {"production": "1", "staging": "2"})

    tab.get_by_role("button", name="Edit labels").click()
    tab.get_by_role("button", name="Remove label 1").click()
    tab.get_by_role("button", name="Save the labels").click()
    expect(tab.get_by_role("dialog")).to_have_count(0)
    assert prompt_of(shop, prompt_id)["labels"] == {"staging": "2"}


def test_archived_prompt_leaves_the_list_and_comes_back(console: Console, shop: Shop) -> None:
    prompt_id = make_prompt(shop)
    make_prompt(shop, name=HOSTILE)
    tab = console.open("/prompts")
    table = tab.get_by_role("table", name="Prompts")
    expect(table.locator("tbody tr")).to_have_count(2)
    console.inspect("prompts")
    tab.get_by_role("link", name="Replies to tickets").click()
    tab.get_by_role("button", name="Archive", exact=True).click()
    expect(tab.get_by_text("archived", exact=True)).to_be_visible()

    tab = console.open("/prompts")
    expect(table.locator("tbody tr")).to_have_count(1)
    tab.get_by_label("Show").select_option("archived")
    expect(table).to_contain_text(prompt_id)
    console.check_reload()
    tab.get_by_role("link", name="Replies to tickets").click()
    tab.get_by_role("button", name="Unarchive").click()
    expect(tab.get_by_role("button", name="Archive", exact=True)).to_be_visible()
    assert prompt_of(shop, prompt_id)["archived_at"] is None


def test_version_is_tried_with_values_and_a_model(console: Console, shop: Shop) -> None:
    console.expect_errors("status of 400")
    tab = console.open(f"/prompts/{make_prompt(shop)}?tab=try&version=2")
    run = tab.get_by_role("button", name="Run")
    run.click()
    expect(tab.get_by_role("alert")).to_contain_text("customer")

    tab.get_by_label("customer", exact=True).fill(f"Ada {HOSTILE}")
    tab.get_by_label("ticket", exact=True).fill("The left lamp is dark.")
    run.click()

    expect(tab.locator(".answer")).to_contain_text("The left lamp is dark.")
    expect(tab.locator(".answer")).to_contain_text(f"Ada {HOSTILE}")
    tab.get_by_label("Model", exact=True).select_option(MODEL)
    tab.get_by_label("customer", exact=True).fill("Grace")
    run.click()
    expect(tab.locator(".answer").nth(1)).to_contain_text("Grace")
    expect(tab.locator(".turn-facts")).to_have_count(2)
    console.inspect("prompt-try")
    assert [asked.count("Ticket of") for asked in shop.asked] == [1, 1], "an answer is not part of the next request"


def test_programs_name_the_prompt_and_no_key(console: Console, shop: Shop) -> None:
    prompt_id = make_prompt(shop)
    post(shop, f"/{prompt_id}", {"labels": {"production": "1"}})
    tab = console.open(f"/prompts/{prompt_id}?tab=use")
    python, command = (tab.get_by_role("region", name=name) for name in ("Python", "Command"))
    expect(python).to_contain_text(f'prompt={{"id": "{prompt_id}", "variables": {{"customer": "…"')
    tab.get_by_label("The request names").select_option("production")
    expect(command).to_contain_text('"version": "production"')

    compile(python.inner_text(), "shown", "exec")
    assert shop.client.api_key not in python.inner_text() + command.inner_text()
    console.inspect("prompt-use")


def test_id_of_a_prompt_opens_its_page(console: Console, shop: Shop) -> None:
    prompt_id = make_prompt(shop)
    tab = console.open("/")
    tab.keyboard.press("Control+k")
    tab.keyboard.type(prompt_id)
    tab.keyboard.press("Enter")

    expect(console.heading).to_have_text("Replies to tickets")
    eventually(lambda: tab.url.endswith(f"/prompts/{prompt_id}"), 30, "the address is that of the prompt")
