"""The page that makes a batch: from a file of requests, and from a table by a prompt template."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from jobs.fleet import workers
from jobs.queues import Queue
from tests.support import worker_steps
from tests.support.console import HOSTILE, Console, Deployment
from tests.support.inline_deployment import MODEL, chat_line, jsonl

pytestmark = pytest.mark.verify


def choose(tab: Page, name: str, content: bytes) -> None:
    """Give the page a file, as the dialog of the browser does."""
    tab.locator("input[type=file]").set_input_files({"name": name, "mimeType": "text/plain", "buffer": content})


def list_model(deployment: Deployment) -> None:
    """Have the API list the model, as it does when a worker serves it."""
    with deployment.inline.db.write() as session:
        workers.store_models(session, {MODEL: False}, Queue.GENERATE)


def content_of(deployment: Deployment, file_id: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in deployment.client.files.content(file_id).content.splitlines()]


def test_checked_requests_become_single_batch(console: Console, deployment: Deployment) -> None:
    console.expect_errors("status of 400")
    tab = console.open("/batches/new")
    console.inspect("new-batch")
    choose(tab, "requests.jsonl", jsonl([chat_line("a", HOSTILE), chat_line("b", "x")]))
    tab.get_by_role("button", name="Upload and check").click()

    expect(tab.get_by_text("Every line can be run.")).to_be_visible()
    tab.get_by_label("Completion window").fill("soon")
    tab.get_by_role("button", name="Create the batch").click()
    expect(tab.get_by_role("alert")).to_contain_text("Invalid value: 'soon'")
    tab.get_by_label("Completion window").fill("6h")
    tab.get_by_label("Priority").fill("5")
    tab.get_by_label("Metadata").fill("team=search")
    console.inspect("new-batch-checked")
    tab.get_by_role("button", name="Create the batch").dblclick()

    expect(tab.get_by_role("heading", name="requests.jsonl")).to_be_visible()
    (batch,) = deployment.client.batches.list().data
    assert (batch.completion_window, batch.metadata) == ("6h", {"team": "search"})
    assert tab.url == f"{deployment.url}/console/jobs/{batch.id}"


def test_errors_are_shown_by_line(console: Console) -> None:
    lines = b"no JSON\n" + jsonl([chat_line("a", "x"), chat_line("a", "y")])
    tab = console.open("/batches/new")
    choose(tab, "wrong.jsonl", lines)
    tab.get_by_role("button", name="Upload and check").click()

    table = tab.get_by_role("table", name="Errors")
    expect(table).to_contain_text("invalid_json_line")
    expect(table).to_contain_text("duplicate_custom_id")
    expect(tab.get_by_role("button", name="Create it anyway")).to_be_visible()
    console.inspect("new-batch-errors")


def test_table_becomes_a_batch_by_a_prompt_template(console: Console, deployment: Deployment) -> None:
    rows = "".join(f'"Land ""{n}"", {HOSTILE.replace(chr(34), chr(34) * 2)}",{n}\n' for n in range(50_000))
    list_model(deployment)
    tab = console.open("/batches/new?source=table")
    choose(tab, "countries.csv", ("\ufeffcountry,id\n" + rows).encode())
    tab.get_by_label("Model").select_option(MODEL)
    tab.get_by_label("Prompt").fill("Name the capital of {{town}}.")
    expect(tab.get_by_role("list", name="What is missing")).to_contain_text("no column “town”")
    expect(tab.get_by_role("button", name="Make the requests")).to_be_disabled()
    tab.get_by_label("Prompt").fill("Name the capital of {{country}}.")
    tab.get_by_label("custom_id").select_option("id")
    tab.get_by_label("Instructions").fill("One word.")

    expect(tab.get_by_role("region", name="Line 3")).to_contain_text(HOSTILE.replace('"', '\\"'))
    console.inspect("new-batch-table")
    tab.get_by_role("button", name="Make the requests").click()
    expect(tab.get_by_text("50,000 requests made")).to_be_visible()
    tab.get_by_role("button", name="Upload and check").click()
    expect(tab.get_by_text("Every line can be run.")).to_be_visible()
    tab.get_by_role("button", name="Create the batch").click()
    expect(tab.get_by_role("heading", name="countries.jsonl")).to_be_visible()

    (batch,) = deployment.client.batches.list().data
    lines = content_of(deployment, batch.input_file_id)
    assert len(lines) == 50_000
    assert lines[-1] == {
        "custom_id": "49999",
        "row": {"country": f'Land "49999", {HOSTILE}', "id": "49999"},
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "One word."},
                {"role": "user", "content": f'Name the capital of Land "49999", {HOSTILE}.'},
            ],
        },
    }


def download_table(tab: Page) -> list[list[str]]:
    """Download the results as CSV; return their rows."""
    with tab.expect_download() as download:
        tab.get_by_role("button", name="CSV").click()
    return list(csv.reader(Path(download.value.path()).read_text().splitlines()))


def test_answers_of_table_batch_become_extra_columns(console: Console, deployment: Deployment) -> None:
    list_model(deployment)
    tab = console.open("/batches/new?source=table")
    choose(tab, "countries.csv", b"country,id\nPeru,7\n" + HOSTILE.replace('"', "'").encode() + b",8\n")
    tab.get_by_label("Model").select_option(MODEL)
    tab.get_by_label("Temperature").fill("0")
    tab.get_by_label("Prompt").fill("Name the capital of {{country}}.")
    tab.get_by_role("button", name="Add a column").click()
    tab.get_by_label("Column 1", exact=True).fill("capital")
    tab.get_by_role("button", name="Add a column").click()
    tab.get_by_label("Column 2", exact=True).fill("size")
    tab.get_by_label("Type of column 2").select_option("choice")
    expect(tab.get_by_role("list", name="What is missing")).to_contain_text("has no choices")
    tab.get_by_label("Choices of column 2").fill("small, large")
    console.inspect("new-batch-columns")
    tab.get_by_role("button", name="Make the requests").click()
    tab.get_by_role("button", name="Upload and check").click()
    tab.get_by_role("button", name="Create the batch").click()
    expect(tab.get_by_role("heading", name="countries.jsonl")).to_be_visible()

    (batch,) = deployment.client.batches.list().data
    body: Any = content_of(deployment, batch.input_file_id)[0]["body"]
    assert (body["temperature"], list(body["response_format"]["json_schema"]["schema"]["properties"])) == (
        0,
        ["capital", "size"],
    )
    message = {"message": {"content": '{"capital": "Lima", "size": "large"}'}, "finish_reason": "stop"}
    answer = {"custom_id": "row-1", "response": {"status_code": 200, "body": {"choices": [message]}}, "error": None}
    failure = {"custom_id": "row-2", "response": None, "error": {"code": "engine_error", "message": "It broke."}}
    lines = [json.dumps(answer).encode()], [json.dumps(failure).encode()]
    worker_steps.end(
        deployment.inline.db, deployment.inline.storage, batch.id, *lines, {"stop": 1, "error:engine_error": 1}
    )
    console.open(f"/jobs/{batch.id}?tab=results")

    table = tab.get_by_role("table", name="Results")
    expect(table.get_by_role("columnheader")).to_have_text(["country", "id", "capital", "size", "Result"])
    expect(table.get_by_role("row").nth(1)).to_contain_text("Peru")
    expect(table.get_by_role("row").nth(1)).to_contain_text("Lima")
    console.inspect("job-table")
    saved = download_table(tab)
    assert saved[:2] == [["country", "id", "capital", "size", "error"], ["Peru", "7", "Lima", "large", ""]]
    assert saved[2][2:] == ["", "", "engine_error"]
    tab.get_by_role("search", name="Column").get_by_label("Column").select_option("size")
    tab.get_by_role("search", name="Column").get_by_label("is").fill("large")
    tab.get_by_role("button", name="Filter").click()
    expect(table.get_by_role("row")).to_have_count(2)
    console.check_reload()
    assert download_table(tab) == saved[:2]
    console.open(f"/jobs/{batch.id}?tab=results&column=size&text=tiny")
    expect(tab.get_by_text("No result matches.")).to_be_visible()
    console.open(f"/jobs/{batch.id}?tab=results")
    tab.get_by_label("As a table").uncheck()
    expect(tab.get_by_role("region", name="Request")).to_have_count(2)


def test_secret_of_a_webhook_is_shown_before_the_page_is_left(console: Console, deployment: Deployment) -> None:
    tab = console.open("/batches/new")
    choose(tab, "requests.jsonl", jsonl([chat_line("a", "x")]))
    tab.get_by_role("button", name="Upload and check").click()
    tab.get_by_label("Webhook").fill("https://192.0.43.8/hook")
    tab.get_by_role("button", name="Create the batch").click()

    expect(tab.get_by_role("dialog")).to_contain_text("whsec_")
    tab.get_by_role("button", name="I have stored it").click()
    expect(tab.get_by_role("heading", name="requests.jsonl")).to_be_visible()
    assert len(deployment.client.batches.list().data) == 1
