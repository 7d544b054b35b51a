"""The way of a newcomer with a browser only.

A table becomes a batch: read why a line failed, save all lines as a table, retry the line. A document is uploaded and
asked, and the answer's citation opens the part of it.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Page, expect

from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.queues import Queue
from tests.sdk import deployment as sdk
from tests.support.console import Console, Deployment, build_console, console_of, deployed
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL
from workers.engines.port import Answer, Request, refusal

pytestmark = pytest.mark.verify

COUNTRIES = ("Austria", "Atlantis", "Peru")
REASON = "This country has sunk."


@pytest.fixture
def console(browser: Browser, sqlite: Database, tmp_path: Path) -> Iterator[Console]:
    """Return a tab whose server refuses one country the first time it is asked about it."""
    refused: list[str] = []

    def sink(request: Request) -> Answer | None:
        prompt = str(request.body["messages"])
        if "Atlantis" not in prompt or refused:
            return None
        refused.append(prompt)
        return refusal(400, REASON, code="sunk")

    with (
        deployed(sqlite, tmp_path, FakeEngine((MODEL,), fault=sink)) as deployment,
        console_of(browser, deployment) as console,
    ):
        with deployment.inline.db.write() as session:
            workers.store_models(session, {MODEL: False}, Queue.GENERATE)
        yield console


def make_batch(tab: Page) -> None:
    """Go from the overview to a batch that is made from a table."""
    tab.get_by_role("link", name="New batch").first.click()
    tab.get_by_role("tab", name="Table").click()
    table = "country\n" + "".join(f"{country}\n" for country in COUNTRIES)
    tab.locator("input[type=file]").set_input_files(
        {"name": "countries.csv", "mimeType": "text/csv", "buffer": table.encode()}
    )
    tab.get_by_label("Model").select_option(MODEL)
    tab.get_by_label("Prompt").fill("Name the capital of {{country}}.")
    tab.get_by_role("button", name="Make the requests").click()
    tab.get_by_role("button", name="Upload and check").click()
    expect(tab.get_by_text("Every line can be run.")).to_be_visible()
    tab.get_by_role("button", name="Create the batch").click()


def run(console: Console) -> None:
    """Run the job of the page that is open, and wait until the page shows it."""
    expect(console.tab.get_by_role("list", name="States of the job")).to_be_visible()
    console.deployment.inline.drain(console.tab.url.rpartition("/")[2])
    expect(console.tab.locator("main").get_by_text("succeeded").first).to_be_visible()


def test_newcomer_makes_a_batch_reads_why_a_line_failed_and_retries_it(console: Console) -> None:
    tab = console.open("/")
    make_batch(tab)
    run(console)
    console.screenshot("newcomer-job")

    tab.get_by_role("link", name="Show these lines").click()
    results = tab.get_by_role("table", name="Results").locator("tbody tr")
    expect(results).to_have_count(1)
    expect(results).to_contain_text(REASON)
    expect(results).to_contain_text("Atlantis")
    tab.get_by_label("Error code").select_option("")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="CSV").click()
    with Path(download.value.path()).open(newline="") as table:
        errors = {row["country"]: row["error"] for row in csv.DictReader(table)}
    assert errors == {"Austria": "", "Atlantis": "sunk", "Peru": ""}

    failed = tab.url.partition("?")[0]
    tab.get_by_role("button", name="Retry").click()
    tab.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(tab).not_to_have_url(re.compile(re.escape(failed)))
    run(console)
    tab.get_by_role("tab", name="Results").click()
    expect(tab.get_by_role("table", name="Results")).to_contain_text("echo")
    console.inspect("newcomer-results")


@pytest.fixture
def reader(browser: Browser, sqlite: Database, tmp_path: Path) -> Iterator[Console]:
    """Return a tab whose server also ingests documents and answers by them."""
    build_console()
    with sdk.deployed(tmp_path, sqlite) as system:
        key = system.facts("newcomer")["key"]
        with OpenAI(base_url=f"{system.url}/v1", api_key=key) as client:
            deployment = Deployment(system.inline, system.app, system.url, client, key, "nm-no-operator")
            with console_of(browser, deployment) as console:
                yield console


def test_newcomer_asks_a_document_and_opens_the_cited_part(reader: Console) -> None:
    tab = reader.open("/")
    tab.get_by_role("link", name="Vector stores").click()
    tab.get_by_role("button", name="New vector store").click()
    tab.get_by_label("Name").fill("handbook")
    tab.get_by_role("button", name="Create the vector store").click()
    document: Any = {"name": "leave.md", "mimeType": "text/markdown", "buffer": b"Everybody has thirty days of leave."}
    tab.locator("input[type=file]").set_input_files(document)
    documents = tab.get_by_role("table", name="Documents")
    expect(documents.get_by_role("row", name="leave.md")).to_contain_text("completed")

    tab.get_by_role("link", name="Playground").click()
    tab.get_by_label("Model", exact=True).select_option(MODEL)
    tab.get_by_label("API").select_option("responses")
    tab.get_by_label("Vector store").select_option("handbook")
    tab.get_by_label("Question").fill("How many days of leave? !cite")
    tab.get_by_label("Question").press("Enter")
    tab.get_by_label("Citations").get_by_role("button").first.click()
    expect(tab.get_by_role("dialog").locator("mark")).to_contain_text("thirty days")
    reader.inspect("newcomer-citation")
