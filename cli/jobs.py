"""`nightmill jobs`, `cancel`, `retry`: what the server has to do, and a say in it."""

import json
import time
from typing import Annotated, Any

import typer

from cli.options import ApiKey, AsJson, DataDir, Url
from cli.snapshot import Snapshot, duration
from cli.terminal import say, show_json, show_table
from cli.trouble import Trouble

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")]


def jobs(
    kind: Annotated[str, typer.Option(help="Only this kind, such as generation or embedding.")] = "",
    state: Annotated[str, typer.Option(help="Only those in this state, such as running or failed.")] = "",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only those noted with this; any number of times.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """List the jobs of your project, the newest first."""
    from cli.server import connect
    from cli.submission import parse_metadata

    query = {name: value for name, value in (("kind", kind), ("state", state)) if value}
    query |= {f"metadata[{name}]": value for name, value in parse_metadata(metadata or []).items()}
    with connect(url, api_key, data_dir) as server:
        found = server.pages("/jobs", query, limit)
    if as_json:
        show_json(found)
    else:
        _table(found)


def _table(found: list[dict[str, Any]]) -> None:
    rows = []
    for job in map(Snapshot.of, found):
        done = f"{job.done} of {job.total}" if job.total else "-"
        age = duration(time.time() - job.created_at)
        rows.append((job.id, job.kind, job.model, job.standing, done, job.failed, age))
    show_table(("job", "kind", "model", "state", "done", "failed", "age"), rows)


def cancel(job: JobId, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Stop a job; what is finished stays and can be downloaded."""
    from cli.server import connect

    with connect(url, api_key, data_dir) as server:
        found = Snapshot.of(server.post(f"/jobs/{job}/cancel"))
    say(f"{found.id} {found.state}")


def retry(
    job: JobId,
    override: Annotated[
        str, typer.Option(metavar="JSON", help="Laid over each request's body, such as '{\"max_tokens\": 64}'.")
    ] = "",
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Run what failed or is missing in an ended job as a new job, and print its id."""
    from cli.server import connect

    try:
        overrides: Any = json.loads(override) if override else {}
    except ValueError as error:
        raise Trouble(f"--override is no JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise Trouble("--override is no JSON object")
    with connect(url, api_key, data_dir) as server:
        say(server.post(f"/jobs/{job}/retry", {"overrides": overrides} if overrides else {})["id"])
