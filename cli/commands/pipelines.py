"""`nightmill pipelines`: run a file of steps, follow its steps, and run again what has not completed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.client.server import Server
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Run steps one after another, each from results of those before it.")
Id = Annotated[str, typer.Argument(metavar="PIPELINE", help="Its id, as `nightmill pipelines list` shows it.")]

#: The purpose of the files that each kind of step reads.
_PURPOSES: Final[Mapping[str, Any]] = {
    "batch": "batch",
    "fine_tuning": "fine-tune",
    "eval_run": "evals",
    "dataset": "user_data",
    "ingestion": "user_data",
    "promotion": "evals",
}


@app.command()
def run(
    options: ServerOptions,
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="The steps, as YAML or JSON. `{file: PATH}` uploads a file.")
    ],
) -> None:
    """Start a pipeline; print its id. Paths count from the folder of the file."""
    pipeline = _read(file)
    missing = [str(path) for step in pipeline["steps"] for path in _paths(step, file.parent) if not path.is_file()]
    if missing:
        raise CliError(f"{missing[0]} is no file; nothing was uploaded")
    steps = [
        _upload(step, file.parent, options.server, _PURPOSES.get(str(step.get("kind")))) for step in pipeline["steps"]
    ]
    made = options.server.post("/pipelines", {**pipeline, "steps": steps})
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


def _read(file: Path) -> dict[str, Any]:
    """Return the definition in a file. Raises CliError."""
    import yaml

    try:
        pipeline = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CliError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    steps = pipeline.get("steps") if isinstance(pipeline, dict) else None
    if (
        not isinstance(pipeline, dict)
        or not isinstance(steps, list)
        or not all(isinstance(step, dict) for step in steps)
    ):
        raise CliError(f"{file} has no list of 'steps', each with a name, a kind and a request")
    return pipeline


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"file"} and isinstance(value["file"], str)


def _paths(value: Any, folder: Path) -> Iterator[Path]:
    """Yield the paths that a step names as `{file: PATH}`."""
    if _is_file(value):
        yield folder / value["file"]
    elif isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _paths(member, folder)


def _upload(value: Any, folder: Path, server: Server, purpose: Any) -> Any:
    """Return a step with the id of an uploaded file in the place of each path."""
    if _is_file(value):
        return server.upload(folder / value["file"], purpose or "user_data")
    if isinstance(value, dict):
        return {name: _upload(member, folder, server, purpose) for name, member in value.items()}
    return [_upload(item, folder, server, purpose) for item in value] if isinstance(value, list) else value


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
