"""The reference of commands in the documentation is that of the commands."""

import runpy
from pathlib import Path

import typer.main

from cli.main import app

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_of_commands_is_up_to_date() -> None:
    writer = runpy.run_path(str(DOCS / "write_commands.py"))

    page = writer["page"](typer.main.get_command(app))

    assert (DOCS / "commands.md").read_text() == page, "run `python docs/write_commands.py`"
