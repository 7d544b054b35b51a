"""Options with the same name and meaning in several commands.

Each is a type for a parameter of a command, which Typer reads. `cli.client.server` finds the server and the key where
`--url` and `--api-key` are not given.
"""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="NIGHTMILL_DATA_DIR",
        help="The data folder of the deployment. Else .nightmill here, or yours that runs.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="NIGHTMILL_URL",
        help="The URL of the server, without /v1. Else OPENAI_BASE_URL, or the running deployment.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="NIGHTMILL_API_KEY",
        show_default=False,
        help="Your key. Else OPENAI_API_KEY, or the key of the running deployment.",
    ),
]
OperatorKey = Annotated[
    str | None,
    typer.Option(
        "--operator-key",
        envvar="NIGHTMILL_OPERATOR_KEY",
        show_default=False,
        help="An operator's key: the server is used. Without it the database of this host is used.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON Lines: one object, or of a list one object for each entry.")
]
Limit = Annotated[int, typer.Option(min=1, help="How many entries to show.")]
Store = Annotated[str, typer.Argument(metavar="STORE", help="The store's id, as `nightmill stores list` shows it.")]
After = Annotated[
    list[str] | None, typer.Option(metavar="ID", help="Start when this job has completed; may be repeated.")
]
