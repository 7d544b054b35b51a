"""The pages of vector stores, over real embeddings: documents, searches with scores, sources, indexes, citations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.integration.test_vector_stores import LIBRARY, InlineDeployment, running
from tests.support.console import Console, Deployment, build_console, console_of

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

SLOW = 120_000  # milliseconds until an embedding model has read a few documents


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the operator allows."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "vienna.md").write_text("# Vienna\n\nVienna lies on the Danube.\n")
    return folder


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Iterator[InlineDeployment]:
    build_console()
    with running(tmp_path_factory.mktemp("stores"), NIGHTMILL_SOURCE_FOLDERS=str(sources)) as inline:
        yield inline


@pytest.fixture
def console(inline: InlineDeployment, browser: Browser) -> Iterator[Console]:
    system = inline.system
    parts = cast("Any", None)
    deployment = Deployment(parts, parts, system.url, inline.client, system.api_key, "nm-no-operator")
    with console_of(browser, deployment) as console:
        yield console


@pytest.fixture(scope="module")
def store(inline: InlineDeployment) -> str:
    """Return a store with two documents."""
    store = inline.store()
    files = [(name, LIBRARY[name][1]) for name in ("whale.txt", "prices.csv")]
    inline.client.vector_stores.file_batches.upload_and_poll(store, files=files)
    return store


def tab_of(tab: Page, name: str) -> None:
    tab.get_by_role("tab", name=name).click()


def test_store_is_created_filled_and_deleted(console: Console) -> None:
    tab = console.open("/vector-stores")
    expect(tab.get_by_role("heading", name="No vector stores yet")).to_be_visible()
    console.inspect("stores-empty")
    tab.get_by_role("button", name="New vector store").click()
    tab.get_by_label("Name").fill("handbook <b>")
    tab.get_by_label("Chunks").select_option("sentence")
    tab.get_by_label("Tokens of a chunk").fill("200")
    tab.get_by_label("Tokens of overlap").fill("50")
    console.inspect("store-new")
    tab.get_by_role("button", name="Create the vector store").click()

    expect(console.heading).to_have_text("handbook <b>")
    console.inspect("store-empty")
    dropped: Any = [
        {"name": "whale.txt", "mimeType": "text/plain", "buffer": LIBRARY["whale.txt"][1]},
        {"name": "broken.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4 broken"},
    ]
    tab.locator("input[type=file]").set_input_files(dropped)
    rows = tab.get_by_role("table", name="Documents")
    expect(rows.get_by_role("row", name="whale.txt")).to_contain_text("completed", timeout=SLOW)
    expect(rows.get_by_role("row", name="broken.pdf")).to_contain_text("failed", timeout=SLOW)
    expect(rows.get_by_role("row", name="whale.txt")).to_contain_text("sentence, 200 tokens, 50 of overlap")
    console.inspect("store-documents")
    tab.get_by_label("State").select_option("failed")
    expect(rows.locator("tbody tr")).to_have_count(1)

    tab.get_by_role("button", name="Remove broken.pdf").click()
    tab.get_by_role("button", name="Remove the document").click()
    expect(tab.get_by_role("heading", name="No documents in this state")).to_be_visible()
    tab.get_by_role("button", name="Delete", exact=True).click()
    tab.get_by_role("button", name="Delete the vector store").click()
    expect(console.heading).to_have_text("Vector stores")


def test_search_shows_the_parts_of_each_score(console: Console, store: str) -> None:
    tab = console.open(f"/vector-stores/{store}?tab=search")
    tab.get_by_label("Query").fill("blue whale")
    tab.get_by_label("Re-ranking model").fill("near")
    tab.get_by_role("button", name="Search").click()

    whale = tab.locator(".results > li", has_text="whale.txt")
    expect(whale).to_be_visible(timeout=SLOW)
    for part in ("Vectors (cosine)", "Words (BM25)", "Fused", "Re-ranked"):
        expect(whale.locator(".scores > div", has_text=part)).to_contain_text(".")
    console.inspect("store-search")
    assert "q=blue" in tab.url
    tab.reload()
    expect(whale).to_be_visible(timeout=SLOW)


def test_invalid_search_names_wrong_parameter(console: Console, store: str) -> None:
    console.expect_errors("status of 400")
    tab = console.open(f"/vector-stores/{store}?tab=search")
    tab.get_by_label("Query").fill("a")
    tab.get_by_label("Re-ranking model").fill("nobody")
    tab.get_by_role("button", name="Search").click()

    expect(tab.get_by_role("alert")).to_contain_text("ranking_options.ranker")


def test_source_is_created_synced_paused_and_deleted(console: Console, store: str, sources: Path) -> None:
    console.expect_errors("status of 400")
    tab = console.open(f"/vector-stores/{store}?tab=sources")
    expect(tab.get_by_role("heading", name="No sources yet")).to_be_visible()
    tab.get_by_role("button", name="New source").click()
    tab.get_by_label("Kind").select_option("folder")
    tab.get_by_label("Folder", exact=True).fill("/root")
    tab.get_by_role("button", name="Create the source").click()
    expect(tab.get_by_role("alert")).to_contain_text("folder_not_allowed")
    tab.get_by_label("Folder", exact=True).fill(str(sources))
    tab.get_by_label("Schedule").fill("0 3 * * *")
    tab.get_by_role("button", name="Create the source").click()

    card = tab.locator(".card", has_text=str(sources))
    expect(card).to_contain_text("1 document: 1 added", timeout=SLOW)
    card.get_by_role("button", name="Pause the schedule").click()
    expect(card).to_contain_text("paused")
    console.inspect("store-sources")
    card.get_by_role("button", name="Resume the schedule").click()
    card.get_by_role("button", name="Sync now").click()
    expect(card).to_contain_text("1 unchanged", timeout=SLOW)
    card.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the source").click()
    expect(tab.get_by_role("heading", name="No sources yet")).to_be_visible()


def test_second_index_is_built_compared_activated_and_first_deleted(console: Console, store: str) -> None:
    tab = console.open(f"/vector-stores/{store}?tab=indexes")
    tab.get_by_role("button", name="New index").click()
    tab.get_by_label("Dimensions").fill("128")
    tab.get_by_role("button", name="Build the index").click()
    second = tab.locator(".card", has_text="ready")
    expect(second).to_be_visible(timeout=SLOW)

    second.get_by_role("button", name="Compare").click()
    tab.get_by_label("Queries").fill("largest animal\nprice of a bicycle\n")
    tab.get_by_role("dialog").get_by_role("button", name="Compare").click()
    expect(tab.get_by_role("table", name="Queries").locator("tbody tr")).to_have_count(2, timeout=SLOW)
    console.inspect("store-compare")
    tab.get_by_role("button", name="Close").click()
    second.get_by_role("button", name="Use this index").click()
    tab.get_by_role("button", name="Use the index").click()
    first = tab.locator(".card", has_text="previous")
    expect(first).to_be_visible()
    console.inspect("store-indexes")
    first.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the index").click()
    expect(first).to_have_count(0)


def test_citation_of_an_answer_opens_its_chunk(console: Console, inline: InlineDeployment, store: str) -> None:
    [found, *_] = inline.client.vector_stores.search(store, query="blue whale", extra_body={"include": ["chunk"]})
    chunk = found.model_dump()["chunk"]
    citation = {"type": "file_citation", "index": 5, "file_id": found.file_id, "filename": found.filename, "support": 1}
    part = {"annotations": [citation | {"start": chunk["start"], "end": chunk["end"]}]}
    events = [
        {"type": "response.output_text.delta", "delta": "It is the blue whale [1]."},
        {"type": "response.completed", "response": {"output": [{"content": [part]}]}},
    ]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    tab = console.open(f"/playground?model=stub-model&api=responses&store={store}")
    tab.route("**/v1/responses", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    with tab.expect_request("**/v1/responses") as request:
        tab.get_by_label("Question").fill("Which is the largest animal that has ever lived?")
        tab.get_by_role("button", name="Send").click()

    assert request.value.post_data_json["tools"][0]["vector_store_ids"] == [store]
    tab.get_by_label("Citations").get_by_role("button").first.click()
    expect(tab.get_by_role("dialog").locator("mark")).to_contain_text("blue whale")
    console.inspect("playground-citation")
