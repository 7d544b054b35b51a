"""Every page of the console over hostile texts: the order of its parts, phones, a reload, texts that stay texts."""

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Page, expect

from jobs.security.keys import create_key
from tests.support.console import Console, Deployment, console_of, deployed
from tests.support.console_data import FILE_NAME, OVERRIDE, PAGES, make_everything
from tests.support.databases import fresh

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

#: The smallest phones, and a screen of 1280 pixels at 400 per cent.
WIDTHS = (360, 320)
#: What leaves the screen sideways, or is cut, outside of a box that scrolls by itself.
_TOO_WIDE = """() => {
    const scrolls = (element) =>
        element && (getComputedStyle(element).overflowX !== 'visible' || scrolls(element.parentElement));
    const width = document.documentElement.clientWidth;
    return [...document.querySelectorAll('body *')]
        .filter((element) => element.checkVisibility() && !element.closest('.hidden'))
        .filter((element) => !scrolls(element.parentElement))
        .filter((element) => element.getBoundingClientRect().right > width + 1)
        .map((element) => element.outerHTML.slice(0, 160));
}"""
#: Controls below 24 x 24 pixels. Links within a text, and what stands in a larger label, may be smaller.
_TOO_SMALL = """() => [...document.querySelectorAll('button, select, summary, input, nav a, a.button, [role=tab]')]
    .filter((element) => element.checkVisibility() && !element.closest('.hidden') && !element.matches('.hidden'))
    .map((element) => [element, (element.closest('label') ?? element).getBoundingClientRect()])
    .filter(([, box]) => box.width > 0 && (box.width < 24 || box.height < 24))
    .map(([element, box]) => `${box.width} x ${box.height}: ${element.outerHTML.slice(0, 160)}`)"""
#: Parts that a screen reader meets in another order than they stand in, from top to bottom, where there is one column.
_OUT_OF_ORDER = """() => {
    const tops = [...document.querySelectorAll('main h1, main h2, main h3, main table, main form')]
        .filter((element) => element.checkVisibility() && !element.closest('dialog'))
        .map((element) => [element.getBoundingClientRect().top, element.outerHTML.slice(0, 100)]);
    return tops.slice(1).filter(([top], index) => top < tops[index][0] - 4).map(([, text]) => text);
}"""
_LEVELS = """() => [...document.querySelectorAll('h1, h2, h3, h4')]
    .filter((element) => element.checkVisibility())
    .map((element) => Number(element.tagName[1]))"""
_UNNAMED = """() => [...document.querySelectorAll('nav, main, section, [role=region]')]
    .filter((element) => element.checkVisibility() && !element.ariaLabel && !element.hasAttribute('aria-labelledby'))
    .map((element) => element.outerHTML.slice(0, 160))"""
_ADDRESSES = (
    "() => [...document.querySelectorAll('a, area, form[action], iframe, img')].map((e) => e.href ?? e.src ?? e.action)"
)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("everything")
    with fresh("sqlite", folder) as db, deployed(db, folder) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def ids(deployment: Deployment) -> dict[str, str]:
    return make_everything(deployment)


@pytest.fixture(scope="module", params=PAGES)
def opened(
    request: pytest.FixtureRequest, browser: Browser, deployment: Deployment, ids: dict[str, str]
) -> Iterator[Console]:
    """Yield the tab of an operator with a page that has loaded all that it shows."""
    with console_of(browser, deployment, operator=True) as console:
        console.open(PAGES[request.param].format_map(ids))
        expect(console.tab.locator(".loading")).to_have_count(0)
        yield console


def test_headings_landmarks_and_order_suit_a_screen_reader(opened: Console) -> None:
    tab = opened.tab
    levels: list[int] = tab.evaluate(_LEVELS)

    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
    assert tab.evaluate(_UNNAMED) == []
    assert tab.locator(".page-title .state").count() == tab.locator(".page-title [aria-live=polite] .state").count()
    expect(tab.get_by_role("main")).to_have_accessible_name(opened.heading.inner_text())


def test_page_fits_smallest_screens_in_single_column(opened: Console) -> None:
    tab = opened.tab
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 740})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(_TOO_WIDE) == []
        assert tab.evaluate(_TOO_SMALL) == []
        assert tab.evaluate(_OUT_OF_ORDER) == []
    tab.set_viewport_size({"width": 1280, "height": 800})


def test_hostile_texts_stay_texts(opened: Console) -> None:
    tab, origin = opened.tab, opened.deployment.url

    assert tab.locator("main img, main script, main iframe, main object").count() == 0
    assert [url for url in tab.evaluate(_ADDRESSES) if not url.startswith(f"{origin}/console/")] == []
    opened.check()


def test_reload_shows_the_same(opened: Console) -> None:
    opened.check_reload()


def test_chosen_state_of_documents_survives_a_reload(
    browser: Browser, deployment: Deployment, ids: dict[str, str]
) -> None:
    with console_of(browser, deployment) as console:
        tab = console.open(PAGES["store"].format_map(ids))
        tab.get_by_label("State").select_option("failed")
        expect(tab.get_by_role("table", name="Documents").locator("tbody tr")).to_have_count(1)

        assert tab.url.endswith("?state=failed")
        console.check_reload()


@pytest.mark.parametrize("path", ["/files", "/files/{file}", "/vector-stores/{store}"])
def test_file_name_cannot_be_disguised_by_an_override(
    browser: Browser, deployment: Deployment, ids: dict[str, str], path: str
) -> None:
    with console_of(browser, deployment) as console:
        tab = console.open(path.format_map(ids))
        expect(tab.get_by_text("photo-[U+202E]gnp").first).to_be_visible()
        assert OVERRIDE not in tab.title() + tab.locator("body").inner_text().replace("\u202e\u05e9", "")
        assert FILE_NAME not in tab.content()


MISSING = {
    "job": "/jobs/{job}",
    "file": "/files/{file}",
    "dataset": "/datasets/{dataset}",
    "pipeline": "/pipelines/{pipeline}",
    "promotion": "/promotions/{promotion}",
    "monitor": "/drift/{monitor}",
    "store": "/vector-stores/{store}",
    "tuning": "/fine-tuning/{tuning}",
    "eval": "/evals/{eval}",
    "run": "/evals/{eval}/runs/{run}",
    "prompt": "/prompts/{prompt}",
    "webhook": "/webhooks/{endpoint}",
    "model": "/models?model={tuned}",
}


@pytest.mark.parametrize("path", MISSING.values(), ids=MISSING)
def test_link_into_another_project_is_refused_in_words(
    browser: Browser, deployment: Deployment, ids: dict[str, str], path: str
) -> None:
    with deployment.inline.db.write() as session:
        key = create_key(session, "another")
    with OpenAI(base_url=f"{deployment.url}/v1", api_key=key) as client:
        stranger = Deployment(deployment.inline, deployment.app, deployment.url, client, key, "nm-no-operator")
        with console_of(browser, stranger) as console:
            console.expect_errors("status of 404")
            tab = console.open(path.format_map(ids))

            expect(tab.get_by_role("alert").or_(tab.get_by_role("dialog")).first).to_contain_text(
                re.compile("belong to another project|[Nn]o model")
            )
            assert len(console.findings()) == 0
            expect(console.heading).to_be_visible()


def focused(tab: Page) -> str:
    return str(tab.evaluate("document.activeElement.id || document.activeElement.textContent"))


def test_focus_follows_pages_and_dialogs(browser: Browser, deployment: Deployment, ids: dict[str, str]) -> None:
    with console_of(browser, deployment) as console:
        tab = console.open("/jobs")
        assert focused(tab) != "content", "a page that is loaded anew leaves the focus where the browser puts it"
        tab.get_by_role("link", name="Keys").press("Enter")
        expect(console.heading).to_have_text("Keys")
        expect(tab.locator("main")).to_be_focused()

        own = tab.get_by_role("row").filter(has_text="used here").get_by_role("button", name="Revoke")
        for close in ("Escape", "Keep it", "Close"):
            own.press("Enter")
            assert tab.evaluate("document.querySelector('dialog').contains(document.activeElement)")
            if close == "Escape":
                tab.keyboard.press("Escape")
            else:
                tab.get_by_role("dialog").get_by_role("button", name=close, exact=True).click()
            expect(own).to_be_focused()

        tab.keyboard.press("Control+k")
        tab.keyboard.type("files")
        tab.keyboard.press("Enter")
        expect(console.heading).to_have_text("Files")
        expect(tab.locator("main")).to_be_focused()
