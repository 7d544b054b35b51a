"""`nightmill schedules`: batches that come again and again."""

import time
from typing import Annotated, Any

import typer

from cli.client.server import connect
from cli.groups import Group
from cli.options import ApiKey, AsJson, DataDir, Url
from cli.terminal import say, show_json, show_table

app = Group("Show, pause, resume and remove recurring batches (`submit --every`).")
Id = Annotated[str, typer.Argument(metavar="ID", help="The schedule's id, as `nightmill schedules list` shows it.")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 100,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show the schedules of your project and when each comes next."""
    with connect(url, api_key, data_dir) as server:
        found = server.pages("/schedules", {}, limit)
    if as_json:
        show_json(found)
        return
    rows = []
    for one in found:
        last = one["last_error"] or one["last_batch_id"] or "-"
        when = f"{one['cron']} {one['timezone']}"
        rows.append((one["id"], when, one["status"], _moment(one), last, one["batch"]["input_file_id"]))
    show_table(("schedule", "when", "status", "next", "last batch", "input"), rows)


@app.command()
def pause(schedule: Id, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Submit nothing more for this schedule until it is resumed."""
    _post(f"/schedules/{schedule}/pause", url, api_key, data_dir)


@app.command()
def resume(schedule: Id, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Go on with the next time to come."""
    _post(f"/schedules/{schedule}/resume", url, api_key, data_dir)


@app.command()
def remove(schedule: Id, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Remove a schedule. Batches that it has submitted go on."""
    with connect(url, api_key, data_dir) as server:
        server.delete(f"/schedules/{schedule}")
    say(f"{schedule} removed")


def _post(path: str, *where: Any) -> None:
    with connect(*where) as server:
        found = server.post(path)
    say(f"{found['id']} {found['status']}, next {_moment(found)}")


def _moment(schedule: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(schedule["next_run_at"]))
