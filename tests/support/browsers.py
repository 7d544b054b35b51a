"""Debian's Chromium, headless, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.services import need

#: Milliseconds that an element may take to appear on a machine with much other work.
PATIENCE: Final = 30_000
expect.set_options(timeout=PATIENCE)


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
