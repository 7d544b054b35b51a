"""The page of stored chats: those that are selected become items of an eval."""

import json

import pytest
from playwright.sync_api import expect

from tests.support.console import HOSTILE, Console, Deployment
from tests.support.mill import MODEL

pytestmark = pytest.mark.verify


def test_page_without_chats_says_how_to_store_one(console: Console) -> None:
    tab = console.open("/logs")

    expect(tab.get_by_role("heading", name="No chat is stored")).to_be_visible()
    expect(tab.get_by_text("store=True")).to_be_visible()
    console.inspect("logs-empty")


def test_selected_chats_become_items_of_an_eval(console: Console, deployment: Deployment) -> None:
    for text in ("Hello", HOSTILE, "Left out"):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        deployment.client.chat.completions.create(model=MODEL, messages=messages, store=True)  # type: ignore[arg-type]
    stored = deployment.client.chat.completions.list(limit=10).data
    tab = console.open("/logs")
    expect(tab.get_by_role("table", name="Chats").locator("tbody tr")).to_have_count(3)

    for chat in stored[:2]:
        tab.get_by_label(f"Select {chat.id}").check()
    console.inspect("logs")
    tab.get_by_role("button", name="Save as eval items").click()

    expect(tab.get_by_text("2 items saved in")).to_be_visible()
    (file,) = deployment.client.files.list(purpose="evals").data
    items = [json.loads(line)["item"] for line in deployment.client.files.content(file.id).text.splitlines()]
    assert {item["question"]: item["answer"] for item in items} == {
        text: str(chat.choices[0].message.content) for text, chat in zip(("Hello", HOSTILE), stored, strict=False)
    }
