"""Take the pictures of the documents in headless Chromium, of a support team's project: see `support_team`.

PYTHONPATH=. python docs/screenshots.py            docs/images/**/*.png are written anew, the console in both themes
PYTHONPATH=. python docs/screenshots.py FOLDER     whole pages in the light theme into FOLDER, to look at
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from docs.support_team import (
    HELP_CENTRE,
    MODELS,
    PROMPT,
    TICKETS,
    SupportTeam,
    support_engine,
    tickets_csv,
)
from tests.integration.test_vector_stores import running
from tests.support.browsers import chromium
from tests.support.console import Console, Deployment, console_of, deployed
from tests.support.databases import fresh
from tests.support.interactive_api import MODEL as SHOP_MODEL
from tests.support.interactive_api import running_broker, shops
from workers.engines.port import Answer, Emit, Request

IMAGES: Final = Path(__file__).parent / "images" / "console"
_WIDTH, _HEIGHT, _COLOURS = 720, 560, 64
_PATIENCE: Final = 120_000  # milliseconds
#: The address of each page, with the names of the ids that a `SupportTeam` makes. Pages of stores have a deployment of
#: their own, whose embeddings are real.
PAGES: Final = {
    "overview": "/",
    "jobs": "/jobs",
    "job-running": "/jobs/{running}",
    "job-waiting": "/jobs/{waiting}",
    "job-results": "/jobs/{table}?tab=results",
    "new-batch-table": "/batches/new?source=table",
    "prompts": "/prompts",
    "prompt-comparison": "/prompts/{prompt}?tab=compare&version=3&against=2",
    "files": "/files",
    "dataset": "/datasets/{dataset}",
    "pipeline": "/pipelines/{pipeline}",
    "models": "/models",
    "model": "/models?model={tuned}",
    "aliases": "/aliases",
    "promotions": "/promotions",
    "promotion": "/promotions/{promotion}",
    "drift": "/drift/{monitor}",
    "fine-tuning-job": "/fine-tuning/{tuning}",
    "fine-tuning-comparison": "/fine-tuning/{tuning}?baseline={baseline}",
    "run": "/evals/{eval}/runs/{run}",
    "comparison": "/evals/{eval}/runs/{better}?tab=comparison&baseline={run}",
    "webhook": "/webhooks/{endpoint}",
    "schedules": "/schedules",
    "workers": "/workers",
    "keys": "/keys",
    "audit": "/audit",
}


class Camera:
    """Takes pictures of pages: whole ones into a folder, or small ones for the documents."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or IMAGES
        self._themes = ("light",) if folder else ("light", "dark")
        self._is_small = folder is None
        self._folder.mkdir(parents=True, exist_ok=True)

    def take(self, console: Console, name: str) -> None:
        """Take the pictures of the page as it is."""
        console.tab.wait_for_load_state("load")
        console.tab.wait_for_timeout(1_000)  # charts are drawn after their data has come
        for theme in self._themes:
            console.show(theme)  # type: ignore[arg-type]
            path = self._folder / (f"{name}-{theme}.png" if self._is_small else f"{name}.png")
            console.tab.screenshot(path=path, full_page=True)
            if self._is_small:
                _shrink(path)


def _shrink(path: Path) -> None:
    """Make a picture narrower, cut it at the bottom, and leave it few colours."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
    small.crop((0, 0, _WIDTH, min(_HEIGHT, small.height))).quantize(_COLOURS).save(path, optimize=True)


def main(folder: Path | None) -> None:
    """Take the pictures of all pages."""
    camera = Camera(folder)
    with chromium() as browser:
        with _support_team(browser) as (console, ids):
            for name, path in PAGES.items():
                tab = console.open(path.format_map(ids))
                if name == "new-batch-table":
                    _fill_table(tab)
                camera.take(console, name)
            if folder is None:
                _picture_reference(browser, console.deployment.url)
        with _help_centre(browser) as (console, store):
            _picture_store(console, store, camera)
        _picture_playground(browser, camera)


@contextmanager
def _support_team(browser: Browser) -> Iterator[tuple[Console, dict[str, str]]]:
    with tempfile.TemporaryDirectory() as name, fresh("sqlite", Path(name)) as db:
        folder = Path(name)
        with deployed(db, folder, support_engine()) as deployment:
            ids = SupportTeam(deployment).make()
            with console_of(browser, deployment, operator=True) as console:
                yield console, ids


def _picture_reference(browser: Browser, url: str) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 600})
    page.goto(f"{url}/docs")
    expect(page.locator(".opblock").first).to_be_visible(timeout=_PATIENCE)
    page.screenshot(path=IMAGES.parent / "reference.png")
    page.close()


def _fill_table(tab: Page) -> None:
    table = {"name": "tickets-2026-11.csv", "mimeType": "text/csv", "buffer": tickets_csv()}
    tab.locator("input[type=file]").set_input_files(cast("Any", table))
    tab.get_by_label("Model", exact=True).select_option(MODELS[0])
    tab.get_by_label("Prompt").fill(PROMPT)
    for number, (name, choices) in enumerate((("category", "billing, delivery, account"), ("reply", "")), 1):
        tab.get_by_role("button", name="Add a column").click()
        tab.get_by_label(f"Column {number}", exact=True).fill(name)
        if choices:
            tab.get_by_label(f"Type of column {number}").select_option("choice")
            tab.get_by_label(f"Choices of column {number}").fill(choices)


@contextmanager
def _help_centre(browser: Browser) -> Iterator[tuple[Console, str]]:
    """Yield the console of a deployment with real embeddings, and the id of a store with the team's articles."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as inline:
        store = inline.client.vector_stores.create(name="Help centre").id
        files = [(name, text.encode()) for name, text in HELP_CENTRE.items()]
        inline.client.vector_stores.file_batches.upload_and_poll(store, files=files)
        parts, system = cast("Any", None), inline.system
        deployment = Deployment(parts, parts, system.url, inline.client, system.api_key, "nm-no-operator")
        with console_of(browser, deployment) as console:
            yield console, store


def _picture_store(console: Console, store: str, camera: Camera) -> None:
    tab = console.open(f"/vector-stores/{store}")
    expect(tab.get_by_role("table", name="Documents").locator("tbody tr")).to_have_count(len(HELP_CENTRE))
    camera.take(console, "store-documents")
    tab = console.open(f"/vector-stores/{store}?tab=search")
    tab.get_by_label("Query").fill(TICKETS[8][0])
    tab.get_by_role("button", name="Search").click()
    expect(tab.locator(".results > li").first).to_be_visible(timeout=_PATIENCE)
    camera.take(console, "store-search")


def _picture_playground(browser: Browser, camera: Camera) -> None:
    """Take a picture of two models that answer the same ticket."""
    with (
        tempfile.TemporaryDirectory() as name,
        fresh("sqlite", Path(name)) as db,
        running_broker(Path(name)) as redis_url,
        shops(Path(name), db.url, redis_url) as make,
    ):
        file = Path(name) / "served.yaml"
        served = ", ".join(MODELS)
        source = 'source: {urls: ["http://127.0.0.1:9/v1"]}, engine: http'
        file.write_text(f"models:\n  {SHOP_MODEL}: {{{source}, aliases: [{served}]}}\n")
        shop = make(models_file=str(file))
        shop.engine.stream = _stream_reply  # type: ignore[method-assign]
        key, url = shop.client.api_key, shop.url.removesuffix("/v1")
        deployment = Deployment(cast("Any", None), shop.app, url, shop.client, key, "nm-no-operator")
        with shop.open(), console_of(browser, deployment) as console:
            tab = console.open(f"/playground?model={MODELS[0]}&second={MODELS[1]}")
            tab.get_by_label("System message").fill("You answer tickets of a shop in one sentence.")
            tab.get_by_label("Question").fill(TICKETS[0][0])
            tab.get_by_label("Question").press("Enter")
            expect(tab.locator(".turn-facts")).to_have_count(2, timeout=_PATIENCE)
            camera.take(console, "playground-two")


async def _stream_reply(_request: Request, emit: Emit) -> Answer:
    for word in TICKETS[0][3].split(" "):
        choice = {"index": 0, "delta": {"content": f"{word} "}}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": SHOP_MODEL, "choices": [choice]}
        await emit(json.dumps(chunk).encode())
    return Answer(200, b"")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
