"""The page of stored chats and responses: those that are selected become items of an eval."""

import json

import pytest
from playwright.sync_api import expect

from tests.support.console import HOSTILE, Console, Deployment
from tests.support.web import store_completion, store_response

pytestmark = pytest.mark.verify


def test_empty_page_explains_how_to_store_chat(console: Console) -> None:
    tab = console.open("/logs")

    expect(tab.get_by_role("heading", name="No chat is stored")).to_be_visible()
    expect(tab.get_by_text("store=True")).to_be_visible()
    console.inspect("logs-empty")


def test_selected_chats_become_items_of_an_eval(console: Console, deployment: Deployment) -> None:
    texts = ("Left out", "Hello", HOSTILE)
    ids = [store_completion(deployment.app, said=text, created_at=float(n)) for n, text in enumerate(texts, 1)]
    tab = console.open("/logs")
    expect(tab.get_by_role("table", name="Stored chats").locator("tbody tr")).to_have_count(3)

    for chat_id in ids[1:]:
        tab.get_by_label(f"Select {chat_id}").check()
    console.inspect("logs")
    tab.get_by_role("button", name="Save as eval items").click()

    expect(tab.get_by_text("2 items saved in")).to_be_visible()
    (file,) = deployment.client.files.list(purpose="evals").data
    items = [json.loads(line)["item"] for line in deployment.client.files.content(file.id).text.splitlines()]
    assert items == [{"question": HOSTILE, "answer": "Hello"}, {"question": "Hello", "answer": "Hello"}]


def test_selected_responses_become_items_of_an_eval(console: Console, deployment: Deployment) -> None:
    ids = [store_response(deployment.app, said=text, created_at=float(n)) for n, text in enumerate(("One", HOSTILE), 1)]
    tab = console.open("/logs")

    tab.get_by_role("tab", name="Responses").click()
    expect(tab.get_by_role("table", name="Stored responses").locator("tbody tr")).to_have_count(2)
    expect(tab).to_have_url(f"{deployment.url}/console/logs?tab=responses")
    tab.get_by_label(f"Select {ids[1]}").check()
    tab.get_by_role("button", name="Save as eval items").click()

    expect(tab.get_by_text("1 item saved in")).to_be_visible()
    (file,) = deployment.client.files.list(purpose="evals").data
    assert json.loads(deployment.client.files.content(file.id).text)["item"] == {"question": HOSTILE, "answer": "Hello"}
