"""Debian's Chromium, headless, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.support.services import need


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser; without one the test is skipped, and fails in CI."""
    program = shutil.which("chromium")
    if program is None:
        need("Chromium", FileNotFoundError("no `chromium` in the path"))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
