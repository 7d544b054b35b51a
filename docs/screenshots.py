"""Take the pictures of the documents: the API reference of a running deployment in headless Chromium, and the console.

python docs/screenshots.py DATA_FOLDER              docs/images/reference.png is written anew
python docs/screenshots.py --console FOLDER         docs/images/console/*.png, from what the tests of the console left

The tests leave their pictures in the folder that NIGHTMILL_TEST_SCREENSHOTS names, in both themes.
"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from cli.up.folder import DataFolder
from tests.support.browsers import chromium

FOLDER = Path(__file__).parent / "images"
_DRAW_MS = 120_000
#: The pages of the console that docs/guides/console.md shows.
CONSOLE = (
    "overview", "jobs", "job-running", "job-results", "new-batch-table", "files", "store-documents", "store-search",
    "playground-two", "models", "fine-tuning-job", "run", "comparison", "webhook", "schedules", "workers", "keys",
    "audit",
)  # fmt: skip
_WIDTH, _HEIGHT, _COLOURS = 720, 560, 64


def main(data_dir: str) -> None:
    """Write the picture of the API reference."""
    run = DataFolder(Path(data_dir)).live_run()
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.goto(f"{run['url']}/docs")
        expect(page.locator(".opblock").first).to_be_visible(timeout=_DRAW_MS)
        page.screenshot(path=FOLDER / "reference.png")


def console(folder: Path) -> None:
    """Write the pictures of the console, small: narrower, cut at the bottom, with few colours."""
    images = FOLDER / "console"
    images.mkdir(parents=True, exist_ok=True)
    for name in (f"{page}-{theme}.png" for page in CONSOLE for theme in ("light", "dark")):
        with Image.open(folder / name) as picture:
            small = picture.convert("RGB").resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
        small.crop((0, 0, _WIDTH, min(_HEIGHT, small.height))).quantize(_COLOURS).save(images / name, optimize=True)


if __name__ == "__main__":
    if sys.argv[1] == "--console":
        console(Path(sys.argv[2]))
    else:
        main(sys.argv[1])
