"""Options that several commands share, with the same name and meaning in each."""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="NIGHTMILL_DATA_DIR", help="The deployment's data folder. Else .nightmill here."),
]
Url = Annotated[
    str | None, typer.Option("--url", envvar="NIGHTMILL_URL", help="The server, without /v1. Else as in run.json.")
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="NIGHTMILL_API_KEY", show_default=False, help="Your key. Else as in run.json."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
