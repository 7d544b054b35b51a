"""The console in a real browser, over the real API, dispatcher and workers with a fake engine.

Deployment ──▶ mill, app, url, client, key, operator_key          what a page shows is made with `client` and `inline`
Console    ──▶ tab: open("/jobs"), inspect("jobs")                what the tab did wrong fails the test at its end

What counts as wrong: an exception, an error or a warning in the browser's log (violations of the content security
policy are among them), a request to elsewhere, and a key in an address, a cookie or the storage that outlives the tab.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, cast

import pytest
from fastapi import FastAPI
from openai import OpenAI
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

from jobs.db.engine import Database
from jobs.platform.locks import FileLock
from jobs.security.keys import create_admin_key
from tests.support.browsers import PATIENCE
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, running
from tests.support.interactive_api import Shop
from tests.support.services import need
from tests.support.system import ROOT, eventually
from tests.support.web import make_key, running_app, serve
from workers.engines.port import Engine

#: What hostile text may look like. It is shown as it is, and `Console` fails where it is taken for more.
HOSTILE: Final = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
_AXE: Final = ROOT / "console" / "node_modules" / "axe-core" / "axe.min.js"
_BUILT: Final = ROOT / "api" / "pages" / "console" / "index.html"
_NARROW: Final = {"width": 360, "height": 740}
_WIDE: Final = {"width": 1280, "height": 800}
_SERIOUS: Final = frozenset({"serious", "critical"})
_STORED: Final = (
    "Array.from(localStorage, (_, n) => localStorage.getItem(localStorage.key(n))).join() + document.cookie"
)
#: What a page shows, without times, which pass, and with what stands in its fields.
_SHOWN: Final = """() => {
    const main = document.querySelector('main').cloneNode(true);
    main.querySelectorAll('time').forEach((time) => time.remove());
    const fields = [...document.querySelectorAll('main input:not([type=file]), main select, main textarea')];
    const entered = fields.map((field) => (field.type === 'checkbox' ? field.checked : field.value));
    return [main.textContent, ...entered].join('\\n');
}"""
#: Runs axe on the page as it is, and returns each finding in one line.
_FIND: Final = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ['violations'] });
    return violations.map(({ id, impact, help, nodes }) => ({
        impact, text: `${id}: ${help}: ${nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(' ')}`,
    }));
}"""


@cache
def build_console() -> None:
    """Build the console from its sources, unless that was done. Where it cannot be built, the test is skipped."""
    with closing(FileLock(ROOT / "console", folder=True)) as lock:
        lock.acquire()
        build = [str(ROOT / ".ci" / "console"), sys.executable]
        done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if not (_BUILT.is_file() and _AXE.is_file()):
        need("the console", FileNotFoundError(done.stdout.strip() or "its packages are not there"))


@dataclass(frozen=True)
class Deployment:
    """A server with its workers, and two keys: of the project `default`, and of the operator."""

    inline: InlineDeployment
    app: FastAPI
    url: str
    client: OpenAI
    key: str
    operator_key: str


@contextmanager
def deployed(db: Database, folder: Path, engine: Engine | None = None, **settings: Any) -> Iterator[Deployment]:
    """Run a deployment over an empty database."""
    build_console()
    engine = engine or FakeEngine((MODEL,))
    with running(db, folder, engine, **settings) as inline, running_app(folder, db.url, **settings) as app:
        key = make_key(app, manages=True)
        (folder / "operator.key").write_text(key)
        with db.write() as session:
            operator_key = create_admin_key(session)
        with serve(app) as url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            yield Deployment(inline, app, url, client, key, operator_key)


def store_keys(tab: Page, url: str, keys: dict[str, str]) -> None:
    """Store keys by their names in a tab, from an empty page of the server's origin, which this function provides."""
    page = '<link rel="icon" href="data:,">'
    tab.route(f"{url}/empty", lambda route: route.fulfill(content_type="text/html", body=page))
    tab.goto(f"{url}/empty")
    tab.evaluate("(keys) => Object.entries(keys).forEach(([name, key]) => sessionStorage.setItem(name, key))", keys)


@dataclass
class Console:
    """A tab of the browser with the console of a deployment, signed in with the key of the project."""

    tab: Page
    deployment: Deployment
    urls: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _expected: list[str] = field(default_factory=list)
    _unanswered: set[Request] = field(default_factory=set)  # without the stream of events, which never ends

    def __post_init__(self) -> None:
        self.tab.set_default_timeout(PATIENCE)
        self.tab.on("request", self._begin)
        self.tab.on("requestfinished", self._end)
        self.tab.on("requestfailed", self._end)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", self._note)

    def _begin(self, request: Request) -> None:
        self.urls.append(request.url)
        if "/v1/events" not in request.url:
            self._unanswered.add(request)

    def _end(self, request: Request) -> None:
        self._unanswered.discard(request)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def sign_in(self, *, operator: bool = False) -> None:
        """Store the keys in the tab, as a page does that was given them; with `operator` also the operator's."""
        keys = {"nightmill.key": self.deployment.key}
        if operator:
            keys["nightmill.admin_key"] = self.deployment.operator_key
        store_keys(self.tab, self.deployment.url, keys)

    def open(self, path: str = "/") -> Page:
        """Open a page of the console by its path, and wait until its heading is there."""
        self.tab.goto(f"{self.deployment.url}/console{path}")
        expect(self.heading).to_be_visible()
        return self.tab

    def check_reload(self) -> None:
        """Load the page anew, and check that it shows the same again."""
        self.wait_until_loaded()
        before, address = self.shown(), self.tab.url
        self.tab.reload()
        expect(self.heading).to_be_visible()
        try:
            eventually(lambda: self.shown() == before, 30, f"{address} shows the same again")
        except TimeoutError:
            pytest.fail(f"before:\n{before}\nafter:\n{self.shown()}")
        assert self.tab.url == address

    def wait_until_loaded(self) -> None:
        """Wait until the page has a heading, all requests are answered and the page stays the same."""
        expect(self.heading).to_be_visible()
        eventually(self._is_loaded, 30, "the page is loaded")

    def _is_loaded(self) -> bool:
        """Return whether all requests are answered and the page has stayed the same for half a second."""
        before = self.shown()
        self.tab.wait_for_timeout(500)
        return not self._unanswered and self.shown() == before

    def shown(self) -> str:
        """Return what the page shows, without times, and what stands in its fields."""
        return str(self.tab.evaluate(_SHOWN))

    @property
    def heading(self) -> Locator:
        return self.tab.locator("h1").first

    def expect_errors(self, *patterns: str) -> None:
        """Allow messages in the browser's log that match a pattern, such as `status of 401`."""
        self._expected += patterns

    def inspect(self, name: str) -> None:
        """Look at the page as it is: axe in both themes, no sideways scrolling on a phone, and screenshots."""
        for theme in ("light", "dark"):
            self.show(theme)
            findings = self.findings()
            assert not findings, f"{name}, {theme}: {findings}"
            self.screenshot(f"{name}-{theme}")
        self.tab.set_viewport_size(_NARROW)  # type: ignore[arg-type]
        width = self.tab.evaluate("document.documentElement.scrollWidth")
        self.screenshot(f"{name}-narrow")
        assert width <= _NARROW["width"], f"{name} is {width} px wide on a screen of {_NARROW['width']}"
        self.tab.set_viewport_size(_WIDE)  # type: ignore[arg-type]
        self.show("light")

    def show(self, theme: Literal["light", "dark"]) -> None:
        """Have the browser ask for a theme, which the console follows by default."""
        self.tab.emulate_media(color_scheme=theme, reduced_motion="reduce")

    def findings(self) -> list[str]:
        """Return what axe finds serious or critical on the page as it is."""
        self.tab.evaluate(_AXE.read_text())
        found: list[dict[str, str]] = self.tab.evaluate(_FIND)
        return [finding["text"] for finding in found if finding["impact"] in _SERIOUS]

    def screenshot(self, name: str) -> None:
        """Write `name`.png into the folder of NIGHTMILL_TEST_SCREENSHOTS, if that is set."""
        if folder := os.environ.get("NIGHTMILL_TEST_SCREENSHOTS"):
            self.tab.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def check(self) -> None:
        """Fail for what the tab did wrong."""
        unexpected = [error for error in self.errors if not any(re.search(each, error) for each in self._expected)]
        assert unexpected == []
        origin = self.deployment.url
        elsewhere = {url for url in self.urls if not url.startswith((origin, "data:", "blob:"))}
        assert elsewhere == set()
        keys = (self.deployment.key, self.deployment.operator_key)
        assert not [url for url in self.urls if any(key in url for key in keys)]
        stored = self.tab.evaluate(_STORED)
        assert not any(key in stored for key in keys)
        assert self.tab.title() != "broken"


@contextmanager
def console_of(
    browser: Browser, deployment: Deployment, *, signed_in: bool = True, operator: bool = False
) -> Iterator[Console]:
    """Yield a tab of its own, and check at the end that it did nothing wrong."""
    context = browser.new_context(viewport=_WIDE, reduced_motion="reduce")  # type: ignore[arg-type]
    console = Console(context.new_page(), deployment)
    try:
        if signed_in:
            console.sign_in(operator=operator)
        yield console
        console.check()
    finally:
        context.close()


@contextmanager
def console_of_shop(browser: Browser, shop: Shop) -> Iterator[Console]:
    """Yield a tab at the server of a shop, which has no workers of jobs and no operator."""
    build_console()
    url = shop.url.removesuffix("/v1")
    deployment = Deployment(cast("Any", None), shop.app, url, shop.client, shop.client.api_key, "nm-no-operator")
    with console_of(browser, deployment) as console:
        yield console
