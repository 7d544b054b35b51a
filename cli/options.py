"""Options with the same name and meaning in several commands: one by one, and in classes of those that go together.

Each type is that of a parameter of a command, which Typer reads. A command whose first parameter is `options` has the
options of that parameter's class too: `cli.groups` hands the object over. `cli.client.server` finds the server and the
key where `--url` and `--api-key` are not given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client.server import Entries, Server, connect
from cli.terminal import say, show_json, show_table

if TYPE_CHECKING:
    from cli.client.steering import SteeredDeployment

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
AdminKey = Annotated[
    str | None,
    typer.Option(
        "--admin-key",
        envvar="NIGHTMILL_ADMIN_KEY",
        show_default=False,
        help="An admin key: the server is used. Without it the database of this host is used.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON Lines: one object, or of a list one object for each entry.")
]
Limit = Annotated[int, typer.Option(min=1, help="How many entries to show.")]
External = Annotated[
    bool | None,
    typer.Option("--allow-external/--no-external", help="Whether prompts of the project may go to servers outside."),
]
MediaUrls = Annotated[
    bool | None,
    typer.Option(
        "--allow-media-urls/--no-media-urls",
        help="Whether workers fetch the pictures and files that the project's requests name by URL.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")]
Store = Annotated[str, typer.Argument(metavar="STORE", help="The store's id, as `nightmill stores list` shows it.")]
After = Annotated[
    list[str] | None, typer.Option(metavar="ID", help="Start when this job has completed; may be repeated.")
]


@dataclass(frozen=True)
class OutputOptions:
    """The form of what a command prints."""

    context: typer.Context
    as_json: AsJson = False

    def show(self, result: object, *lines: str) -> None:
        """Print what a command has found or done: `lines`, or with --json the object `result`."""
        if self.as_json:
            show_json(result)
        for line in () if self.as_json else lines:
            say(line)

    def show_entries(
        self, entries: list[dict[str, Any]], head: Sequence[str], row: Callable[[dict[str, Any]], Sequence[object]]
    ) -> None:
        """Print a list: a table with a row for each entry, or with --json the entries."""
        if self.as_json:
            show_json(entries)
        else:
            show_table(head, map(row, entries))
        if isinstance(entries, Entries) and entries.has_more:
            say(f"there are more than these {len(entries)}; --limit shows more", err=True)


@dataclass(frozen=True)
class HostOptions(OutputOptions):
    """The options of a command that works on a deployment of this host."""

    data_dir: DataDir = None


@dataclass(frozen=True)
class ServerOptions(OutputOptions):
    """The options of a command that asks a server."""

    url: Url = None
    api_key: ApiKey = None
    data_dir: DataDir = None

    @cached_property
    def server(self) -> Server:
        """Return a client of the server, which is closed when the command ends. Raises CliError as `connect` does."""
        return self.context.with_resource(connect(self.url, self.api_key, self.data_dir))


@dataclass(frozen=True)
class OperatorOptions(OutputOptions):
    """The options of a command that steers a deployment."""

    url: Url = None
    admin_key: AdminKey = None
    data_dir: DataDir = None

    @cached_property
    def deployment(self) -> "SteeredDeployment":
        """Return the deployment to steer, which is closed when the command ends. Raises CliError."""
        from cli.client.steering import open_deployment

        return self.context.with_resource(open_deployment(self.url, self.admin_key, self.data_dir))
