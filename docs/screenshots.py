"""Take the pictures of the documents: the pages of a running deployment, in headless Chromium.

python docs/screenshots.py DATA_FOLDER [MODEL]      docs/images/*.png is written anew
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from cli.up.folder import DataFolder
from tests.support.browsers import chromium

FOLDER = Path(__file__).parent / "images"
QUESTION = "What is a batch of requests? Answer in two sentences."
_ANSWER_MS = 120_000


def main(data_dir: str, model: str = "smollm2-135m-instruct") -> None:
    """Write one picture a page. The model has to be loaded."""
    run = DataFolder(Path(data_dir)).live_run()
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 900, "height": 600})
        _ask(page, run, model)
        page.screenshot(path=FOLDER / "chat.png")
        page.goto(f"{run['url']}/docs")
        expect(page.locator(".opblock").first).to_be_visible(timeout=_ANSWER_MS)
        page.screenshot(path=FOLDER / "reference.png")


def _ask(page: Page, run: dict[str, str], model: str) -> None:
    page.goto(f"{run['url']}/chat")
    page.fill("#key", run["api_key"])
    page.press("#key", "Tab")
    page.fill("#model", model)
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "120")
    page.fill("#prompt", QUESTION)
    page.click("#send")
    expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled(timeout=_ANSWER_MS)


if __name__ == "__main__":
    main(*sys.argv[1:])
