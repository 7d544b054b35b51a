"""`nightmill watch JOB`: how a job goes on, and what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import ApiKey, DataDir, Url
from cli.terminal import say

if TYPE_CHECKING:
    from cli.server import Server

_INTERRUPTED = 130


def watch(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")],
    output: Annotated[Path | None, typer.Option(help="Write the answers here when it ends; errors beside it.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Watch a job until it ends. Ctrl-C stops watching, not the job. Exit code 1 if it did not succeed."""
    from cli.server import connect
    from cli.submission import output_paths
    from cli.wholefile import require_writable

    if output:
        require_writable(output)
    with connect(url, api_key, data_dir) as server:
        watched(server, job, output_paths(Path(job), output) if output else None)


def watched(server: "Server", job_id: str, paths: tuple[Path, Path] | None) -> None:
    """Follow a job, tell its end, and fetch its files if there is a place for them."""
    from cli import ending
    from cli.following import follow

    try:
        job = follow(server, job_id)
    except KeyboardInterrupt:
        say("", err=True)
        say(f"{job_id} goes on: `nightmill watch {job_id}`, `nightmill cancel {job_id}`", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    ending.tell(job)
    if paths:
        ending.fetch(server, job, *paths)
    ending.require_success(job)
