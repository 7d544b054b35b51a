"""`nightmill schedules`: list, pause, resume and remove schedules of batches."""

from typing import Annotated, Any

import typer

from cli.client.server import connect
from cli.groups import Group
from cli.options import ApiKey, AsJson, DataDir, Limit, Url
from cli.terminal import moment, show, show_entries

app = Group("Show, pause, resume and remove recurring batches (`submit --every`).")
Id = Annotated[str, typer.Argument(metavar="ID", help="The schedule's id, as `nightmill schedules list` shows it.")]


@app.command("list")
def list_(
    limit: Limit = 100,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """List the schedules of your project, the newest first, with the time at which each runs next."""
    with connect(url, api_key, data_dir) as server:
        entries = server.pages("/schedules", {}, limit)
    head = ("schedule", "when", "status", "next", "last batch", "input")
    show_entries(entries, head, _row, as_json=as_json, has_more=entries.has_more)


@app.command()
def pause(
    schedule: Id, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """Submit no more batches for a schedule until it is resumed."""
    _post(f"/schedules/{schedule}/pause", url, api_key, data_dir, as_json=as_json)


@app.command()
def resume(
    schedule: Id, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """Submit batches for a paused schedule again, from its next time on."""
    _post(f"/schedules/{schedule}/resume", url, api_key, data_dir, as_json=as_json)


@app.command()
def remove(
    schedule: Id, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """Remove a schedule. Batches that were submitted for it go on."""
    with connect(url, api_key, data_dir) as server:
        show(server.delete(f"/schedules/{schedule}"), f"{schedule} removed", as_json=as_json)


def _post(path: str, *where: Any, as_json: bool) -> None:
    with connect(*where) as server:
        schedule = server.post(path)
    show(schedule, f"{schedule['id']} {schedule['status']}, next {moment(schedule['next_run_at'])}", as_json=as_json)


def _row(schedule: dict[str, Any]) -> tuple[object, ...]:
    last = schedule["last_error"] or schedule["last_batch_id"] or "-"
    columns = (f"{schedule['cron']} {schedule['timezone']}", schedule["status"], moment(schedule["next_run_at"]))
    return schedule["id"], *columns, last, schedule["batch"]["input_file_id"]
