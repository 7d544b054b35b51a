"""`nightmill sources`: the sources of a vector store's documents."""

from typing import Annotated, Any

import typer

from cli.groups import Group
from cli.options import Limit, ServerOptions, Store
from cli.terminal import moment

app = Group("Keep a vector store in step with URLs, a folder of the server or S3.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The source's id, as `nightmill sources list` shows it.")]
Zone = Annotated[str | None, typer.Option(help="The time zone of --every, such as Europe/Zurich. Else UTC.")]


@app.command("list")
def list_(options: ServerOptions, store: Store, limit: Limit = 100) -> None:
    """List the sources of a vector store, the newest first, with the result of their last sync."""
    head = ("source", "from", "status", "documents", "next", "last error")
    options.show_entries(options.server.pages(_path(store), {}, limit), head, _row)


@app.command()
def add(
    options: ServerOptions,
    store: Store,
    locations: Annotated[
        list[str], typer.Argument(metavar="LOCATION...", help="URLs, or one folder of the server, or one s3:// prefix.")
    ],
    glob: Annotated[str | None, typer.Option(help="Only files of the folder that match, such as **/*.md.")] = None,
    every: Annotated[str | None, typer.Option(help="Sync again at these times, as a cron expression.")] = None,
    timezone: Zone = None,
) -> None:
    """Add the documents of a folder, a bucket or URLs to a vector store, now and at the times of --every."""
    given = {"glob": glob, "cron": every, "timezone": timezone}
    body = _location(locations) | {name: value for name, value in given.items() if value is not None}
    made = options.server.post(_path(store), body)
    options.show(made, made["id"])


@app.command()
def sync(options: ServerOptions, store: Store, source: Id) -> None:
    """Sync a source now, unless it is being synced."""
    synced = options.server.post(f"{_path(store)}/{source}/sync")
    text = f"{synced['id']} {synced['status']}; nightmill watch {synced['file_batch_id']} follows it"
    options.show(synced, text)


@app.command()
def remove(options: ServerOptions, store: Store, source: Id) -> None:
    """Remove a source and delete the files that came from it."""
    options.show(options.server.delete(f"{_path(store)}/{source}"), f"{source} removed")


def _path(store: str) -> str:
    return f"/vector_stores/{store}/sources"


def _location(locations: list[str]) -> dict[str, Any]:
    """Return the source as the API takes it. The server validates it."""
    if len(locations) == 1 and locations[0].startswith("s3://"):
        return {"type": "s3", "prefix": locations[0]}
    if len(locations) == 1 and locations[0].startswith("/"):
        return {"type": "folder", "path": locations[0]}
    return {"type": "url", "urls": locations}


def _row(source: dict[str, Any]) -> tuple[object, ...]:
    error = source["last_error"]["message"] if source["last_error"] else "-"
    return source["id"], _origin(source), source["status"], _describe_counts(source), _next_sync(source), error


def _origin(source: dict[str, Any]) -> str:
    urls = source["urls"] or []
    more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
    return f"{urls[0]}{more}" if urls else str(source["path"] or source["prefix"])


def _describe_counts(source: dict[str, Any]) -> str:
    counts = source["counts"]
    if counts is None:
        return "-"
    parts = [f"{counts[name]} {name}" for name in ("added", "changed", "removed", "failed") if counts[name]]
    return ", ".join([str(counts["seen"]), *parts])


def _next_sync(source: dict[str, Any]) -> str:
    if source["next_run_at"] is None or source["paused"]:
        return "paused" if source["paused"] else "-"
    return moment(source["next_run_at"])
