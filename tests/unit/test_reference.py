"""The reference pages of the documentation are those that the code writes."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made: dict[str, str] = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    return made


@pytest.mark.parametrize(
    "name", ["settings.md", "commands.md", "api.md", "compatibility.md", "fields.md", "graders.md"]
)
def test_reference_page_matches_generated_text(name: str, pages: dict[str, str]) -> None:
    assert (DOCS / "reference" / name).read_text() == pages[name], "run `make docs`"


def test_every_page_that_the_code_writes_is_there(pages: dict[str, str]) -> None:
    assert {page.name for page in (DOCS / "reference").glob("*.md")} == set(pages)
