"""A tab that was open while the server was upgraded: the code of its pages is gone, and the new console is loaded."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from api.pages import console_files
from tests.support.console import Console

pytestmark = pytest.mark.verify

HASH = re.compile(r"-([\w-]{8})\.(?=js\b|css\b)")
MAIN = "document.querySelector('script[src]').src"


@pytest.fixture
def build(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve a copy of the build, and return its folder."""
    folder = tmp_path / "build"
    shutil.copytree(console_files.BUILD, folder)
    for file in [*folder.rglob("*.br"), *folder.rglob("*.gz")]:
        file.unlink()
    monkeypatch.setattr(console_files, "BUILD", folder)
    return folder


def upgrade(build: Path) -> None:
    """Give each file of the build another name, as a build from other sources has."""
    hashes = {match[1] for file in (build / "assets").iterdir() if (match := HASH.search(file.name))}
    for file in [build / "index.html", *(build / "assets").iterdir()]:
        text = HASH.sub(lambda match: f"-{match[1][::-1] if match[1] in hashes else match[1]}.", file.read_text())
        file.unlink()
        file.with_name(HASH.sub(lambda match: f"-{match[1][::-1]}.", file.name)).write_text(text)


@pytest.mark.parametrize("page", ["Jobs", "Playground"])  # the second one has styles of its own
def test_tab_of_older_console_loads_new_console(console: Console, build: Path, page: str) -> None:
    console.expect_errors("status of 404", "MIME type")  # the error in JSON is no style
    tab = console.open("/webhooks")
    older = tab.evaluate(MAIN)
    upgrade(build)

    tab.get_by_role("navigation").get_by_role("link", name=page, exact=True).click()

    expect(console.heading).to_have_text(page)
    assert tab.evaluate(MAIN) != older
    assert tab.evaluate("location.pathname") == f"/console/{page.lower()}"


def test_pointer_over_a_link_does_not_reload_the_page(console: Console, build: Path) -> None:
    console.expect_errors("status of 404")
    tab = console.open("/webhooks")
    tab.evaluate("window.stays = true")
    upgrade(build)

    with tab.expect_response(lambda answer: answer.status == 404):
        tab.get_by_role("navigation").get_by_role("link", name="Jobs", exact=True).hover()
    tab.wait_for_timeout(1_000)

    assert tab.evaluate("window.stays") is True
    expect(console.heading).to_have_text("Webhooks")


def test_page_with_missing_code_shows_error(console: Console, build: Path) -> None:
    console.expect_errors("status of 404", "dynamically imported module")
    tab = console.open("/webhooks")
    [code] = (build / "assets").glob("Jobs-*.js")
    code.unlink()

    tab.get_by_role("navigation").get_by_role("link", name="Jobs", exact=True).click()

    expect(tab.get_by_role("alert")).to_contain_text("This page cannot be shown")
    expect(tab.get_by_role("alert")).to_contain_text("Reload the page")
    expect(tab.get_by_role("navigation")).to_be_visible()


def test_retry_opens_page_after_outage_without_reload(console: Console) -> None:
    console.expect_errors("ERR_FAILED", "dynamically imported module", "The server cannot be reached")
    tab = console.open("/webhooks")
    tab.evaluate("window.stays = true")
    tab.route("**/console/**", lambda route: route.abort())

    tab.get_by_role("navigation").get_by_role("link", name="Jobs", exact=True).click()
    expect(tab.get_by_role("alert")).to_contain_text("The server cannot be reached")
    tab.unroute("**/console/**")
    tab.get_by_role("button", name="Try again").click()

    expect(console.heading).to_have_text("Jobs")
    assert tab.evaluate("window.stays") is True
