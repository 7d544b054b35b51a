"""`nightmill sources`: where the documents of a vector store come from."""

import time
from typing import Annotated, Any

import typer

from cli.client.server import connect
from cli.groups import Group
from cli.options import ApiKey, AsJson, DataDir, Url
from cli.terminal import say, show_json, show_table

app = Group("Keep a vector store in step with URLs, a folder of the server or S3.")
Store = Annotated[str, typer.Argument(metavar="STORE", help="The vector store's id.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The source's id, as `nightmill sources list` shows it.")]
Zone = Annotated[str | None, typer.Option(help="Time zone of --every, as Europe/Zurich; without it UTC.")]


@app.command("list")
def list_(
    store: Store,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 100,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show the sources of a vector store and what came of each."""
    with connect(url, api_key, data_dir) as server:
        found = server.pages(_path(store), {}, limit)
    if as_json:
        show_json(found)
        return
    rows = []
    for one in found:
        error = one["last_error"]["message"] if one["last_error"] else "-"
        rows.append((one["id"], _from(one), one["status"], _counted(one), _next(one), error))
    show_table(("source", "from", "status", "documents", "next", "last error"), rows)


@app.command()
def add(
    store: Store,
    places: Annotated[list[str], typer.Argument(metavar="PLACE...", help="URLs, or one folder, or one s3://… prefix.")],
    glob: Annotated[str | None, typer.Option(help="Which files of the folder, as **/*.md.")] = None,
    every: Annotated[str | None, typer.Option(help="A cron expression: when to sync again.")] = None,
    timezone: Zone = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Bring in what is there, now and whenever the time comes."""
    given = {"glob": glob, "cron": every, "timezone": timezone}
    body = _place(places) | {name: value for name, value in given.items() if value is not None}
    with connect(url, api_key, data_dir) as server:
        say(server.post(_path(store), body)["id"])


@app.command()
def sync(store: Store, source: Id, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Sync a source now, unless it is being synced."""
    with connect(url, api_key, data_dir) as server:
        found = server.post(f"{_path(store)}/{source}/sync")
    say(f"{found['id']} {found['status']}; nightmill watch {found['file_batch_id']} follows it")


@app.command()
def remove(store: Store, source: Id, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Remove a source and delete the files that it has brought."""
    with connect(url, api_key, data_dir) as server:
        server.delete(f"{_path(store)}/{source}")
    say(f"{source} removed")


def _path(store: str) -> str:
    return f"/vector_stores/{store}/sources"


def _place(places: list[str]) -> dict[str, Any]:
    """What a create takes. The server says what is wrong with it."""
    if len(places) == 1 and places[0].startswith("s3://"):
        return {"type": "s3", "prefix": places[0]}
    if len(places) == 1 and places[0].startswith("/"):
        return {"type": "folder", "path": places[0]}
    return {"type": "url", "urls": places}


def _from(source: dict[str, Any]) -> str:
    urls = source["urls"] or []
    more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
    return f"{urls[0]}{more}" if urls else str(source["path"] or source["prefix"])


def _counted(source: dict[str, Any]) -> str:
    counts = source["counts"]
    if counts is None:
        return "-"
    told = [f"{counts[name]} {name}" for name in ("added", "changed", "removed", "failed") if counts[name]]
    return ", ".join([str(counts["seen"]), *told])


def _next(source: dict[str, Any]) -> str:
    if source["next_run_at"] is None or source["paused"]:
        return "paused" if source["paused"] else "-"
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(source["next_run_at"]))
