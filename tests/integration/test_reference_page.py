"""The start page and the API reference in a real browser: both load from their server alone, and store nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browsers import PATIENCE
from tests.support.interactive_api import MODEL, Shop

pytestmark = pytest.mark.verify


def test_the_entrance_leads_to_the_reference_and_an_operation_can_be_tried_there(
    make_shop: Callable[..., Shop], browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.pages.console_files.BUILD", tmp_path / "none")
    shop = make_shop()
    tab = browser.new_page(viewport={"width": 900, "height": 640})
    tab.set_default_timeout(4 * PATIENCE)  # the document is composed, and then drawn
    urls: list[str] = []
    wrong: list[str] = []
    tab.on("request", lambda request: urls.append(request.url))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)

    tab.goto(shop.url.removesuffix("/v1") + "/")
    _screenshot(tab, "entrance")
    tab.get_by_role("link", name="API reference").click()
    tab.get_by_placeholder("Filter by tag or path").fill("Models")  # only operations near the window are drawn
    operation = tab.locator("#operations-Models-list_models_v1_models_get")
    expect(operation).to_be_visible(timeout=4 * PATIENCE)
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
    tab.close()


def _screenshot(tab: Page, name: str) -> None:
    if folder := os.environ.get("NIGHTMILL_TEST_SCREENSHOTS"):
        tab.screenshot(path=f"{folder}/{name}.png")
