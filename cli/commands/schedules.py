"""`nightmill schedules`: list, pause, resume and remove schedules of batches."""

from typing import Annotated, Any

import typer

from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Show, pause, resume and remove recurring batches (`submit --every`).")
Id = Annotated[str, typer.Argument(metavar="ID", help="The schedule's id, as `nightmill schedules list` shows it.")]


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the schedules of your project, the newest first, with the time at which each runs next."""
    head = ("schedule", "when", "status", "next", "last batch", "input")
    options.show_entries(options.server.pages("/schedules", {}, limit), head, _row)


@app.command()
def pause(options: ServerOptions, schedule: Id) -> None:
    """Submit no more batches for a schedule until it is resumed."""
    _post(options, f"/schedules/{schedule}/pause")


@app.command()
def resume(options: ServerOptions, schedule: Id) -> None:
    """Submit batches for a paused schedule again, from its next time on."""
    _post(options, f"/schedules/{schedule}/resume")


@app.command()
def remove(options: ServerOptions, schedule: Id) -> None:
    """Remove a schedule. Batches that were submitted for it go on."""
    options.show(options.server.delete(f"/schedules/{schedule}"), f"{schedule} removed")


def _post(options: ServerOptions, path: str) -> None:
    schedule = options.server.post(path)
    options.show(schedule, f"{schedule['id']} {schedule['status']}, next {moment(schedule['next_run_at'])}")


def _row(schedule: dict[str, Any]) -> tuple[object, ...]:
    last = schedule["last_error"] or schedule["last_batch_id"] or "-"
    columns = (f"{schedule['cron']} {schedule['timezone']}", schedule["status"], moment(schedule["next_run_at"]))
    return schedule["id"], *columns, last, schedule["batch"]["input_file_id"]
