"""`nightmill pipelines`: run a file of steps, follow its steps, and run again what has not completed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client.job_definitions import is_pipeline, read_definition, upload_files
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Run steps one after another, each from results of those before it.")
Id = Annotated[str, typer.Argument(metavar="PIPELINE", help="Its id, as `nightmill pipelines list` shows it.")]


@app.command()
def run(
    options: ServerOptions,
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="The steps, as YAML or JSON. `{file: PATH}` uploads a file.")
    ],
) -> None:
    """Start a pipeline; print its id. Paths count from the folder of the file."""
    definition = read_definition(file)
    if not is_pipeline(definition):
        raise CliError(f"{file} has no list of 'steps', each with a name, a kind and a request")
    made = options.server.post("/pipelines", upload_files(definition, file.parent, options.server))
    options.show(made, made["id"])


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the pipelines of your project, the newest first."""
    head = ("pipeline", "name", "status", "completed", "created")
    options.show_entries(options.server.pages("/pipelines", {}, limit), head, _row)


@app.command()
def show(options: ServerOptions, pipeline: Id) -> None:
    """Show the steps of a pipeline, with the job that each has made."""
    shown = options.server.get(f"/pipelines/{pipeline}")
    lines = [f"{step['name']} ({step['kind']}): {step['status']}{_details(step)}" for step in shown["steps"]]
    options.show(shown, _describe(shown), *(f"  {line}" for line in lines))


@app.command()
def graph(options: ServerOptions, pipeline: Id) -> None:
    """Draw the steps of a pipeline, each below those that it waits for."""
    shown = options.server.get(f"/pipelines/{pipeline}")
    options.show(shown, _describe(shown), *_draw(shown["steps"]))


@app.command()
def resume(options: ServerOptions, pipeline: Id) -> None:
    """Run the steps of an ended pipeline that have not completed, as a new pipeline; print its id."""
    made = options.server.post(f"/pipelines/{pipeline}/resume")
    options.show(made, made["id"])


@app.command()
def cancel(options: ServerOptions, pipeline: Id) -> None:
    """Stop a pipeline and the jobs of its steps."""
    shown = options.server.post(f"/pipelines/{pipeline}/cancel")
    options.show(shown, _describe(shown))


def _draw(steps: list[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of a drawing: each step once, indented by the longest way to it."""
    depths: dict[str, int] = {}
    remaining = list(steps)
    while remaining:
        free = [step for step in remaining if depths.keys() >= set(step["after"])] or remaining
        for step in free:
            depths[step["name"]] = 1 + max((depths.get(name, 0) for name in step["after"]), default=0)
            after = f", after {', '.join(step['after'])}" if step["after"] else ""
            yield f"{'  ' * depths[step['name']]}{step['name']} ({step['kind']}): {step['status']}{after}"
        remaining = [step for step in remaining if step not in free]


def _describe(pipeline: dict[str, Any]) -> str:
    name = f" ({pipeline['name']})" if pipeline["name"] else ""
    return f"{pipeline['id']}{name}: {pipeline['status']}, created {moment(pipeline['created_at'])}"


def _details(step: dict[str, Any]) -> str:
    job = f", {step['job_id']}" if step["job_id"] else ""
    return job + (f", {step['error']['code']}: {step['error']['message']}" if step["error"] else "")


def _row(pipeline: dict[str, Any]) -> tuple[object, ...]:
    completed = sum(step["status"] == "completed" for step in pipeline["steps"])
    columns = (pipeline["status"], f"{completed} of {len(pipeline['steps'])}", moment(pipeline["created_at"]))
    return pipeline["id"], pipeline["name"] or "-", *columns
