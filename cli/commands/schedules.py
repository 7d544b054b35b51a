"""`nightmill schedules`: create, list, show, pause, resume and remove schedules of jobs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client.job_definitions import is_pipeline, read_definition, upload_files
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Run jobs and pipelines again and again, at the times of a cron expression.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The schedule's id, as `nightmill schedules list` shows it.")]


@app.command()
def create(
    options: ServerOptions,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.yaml",
            help="A job with its type or a pipeline with its steps, as YAML or JSON. `{file: PATH}` uploads a file.",
        ),
    ],
    every: Annotated[str, typer.Option(metavar="CRON", help="The times, such as '0 3 * * *'.")],
    timezone: Annotated[str, typer.Option(help="The time zone of --every.")] = "UTC",
) -> None:
    """Submit the job of a file at these times; print the id of the schedule. `submit --every` makes one of a batch."""
    job = read_definition(file)
    if is_pipeline(job):
        job = {"type": "pipeline", **job}
    if "type" not in job:
        raise CliError(f"{file} has neither a 'type', such as 'eval_run', nor a list of 'steps'")
    uploaded = upload_files(job, file.parent, options.server)
    made = options.server.post("/schedules", {"cron": every, "timezone": timezone, "job": uploaded})
    options.show(made, made["id"])


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the schedules of your project, the newest first, with the time at which each runs next."""
    head = ("schedule", "when", "kind", "status", "next", "last job")
    options.show_entries(options.server.pages("/schedules", {}, limit), head, _row)


@app.command()
def show(options: ServerOptions, schedule: Id) -> None:
    """Show a schedule with the job that it submits, and what its last time brought."""
    import yaml

    shown = options.server.get(f"/schedules/{schedule}")
    when = f"{shown['cron']} {shown['timezone']}"
    last = f"last {_last(shown)}"
    job = yaml.safe_dump(shown["job"] or shown["batch"], sort_keys=False, allow_unicode=True)
    options.show(shown, f"{_describe(shown)}, {when}", last, *(f"  {line}" for line in job.splitlines()))


@app.command()
def pause(options: ServerOptions, schedule: Id) -> None:
    """Submit no more jobs for a schedule until it is resumed."""
    _post(options, f"/schedules/{schedule}/pause")


@app.command()
def resume(options: ServerOptions, schedule: Id) -> None:
    """Submit jobs for a paused schedule again, from its next time on."""
    _post(options, f"/schedules/{schedule}/resume")


@app.command()
def remove(options: ServerOptions, schedule: Id) -> None:
    """Remove a schedule. Jobs that were submitted for it go on."""
    options.show(options.server.delete(f"/schedules/{schedule}"), f"{schedule} removed")


def _post(options: ServerOptions, path: str) -> None:
    schedule = options.server.post(path)
    options.show(schedule, _describe(schedule))


def _describe(schedule: dict[str, Any]) -> str:
    return f"{schedule['id']} {schedule['status']}, next {moment(schedule['next_run_at'])}"


def _last(schedule: dict[str, Any]) -> str:
    return str(schedule["last_error"] or schedule["last_job_id"] or "-")


def _row(schedule: dict[str, Any]) -> tuple[object, ...]:
    when = f"{schedule['cron']} {schedule['timezone']}"
    return schedule["id"], when, schedule["kind"], schedule["status"], moment(schedule["next_run_at"]), _last(schedule)
