"""`nightmill drift`: compare the texts of a project with those of a baseline."""

import json
from typing import Annotated, Any

import typer

from cli.client.progress import follow
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment, say, show_table

app = Group("Find out whether questions, their languages or scores have changed.")
Monitor = Annotated[str, typer.Argument(metavar="MONITOR", help="Its id, as `nightmill drift list` shows it.")]
_SOURCE = "A path or the id of a file of texts, stored_completions, responses, or a source as JSON."
Source = Annotated[str, typer.Argument(metavar="[SOURCE]", help=f"{_SOURCE} Else that of the monitor.")]
_ANSWERS = ("stored_completions", "responses")


@app.command()
def create(
    options: ServerOptions,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE)],
    baseline: Annotated[str, typer.Option(metavar="SOURCE", help="Where the baseline comes from, if elsewhere.")] = "",
    hours: Annotated[int, typer.Option(min=1, max=720, help="The age of the oldest answer that is sampled.")] = 24,
    sample: Annotated[int, typer.Option(min=50, max=2000, help="How many texts are compared, at most.")] = 1000,
    model: Annotated[str, typer.Option(help="The model of the embeddings. Else the deployment's.")] = "",
) -> None:
    """Create a monitor, wait for its baseline, and print its id."""
    body = {"name": name, "source": _parse(options, source), "window_seconds": hours * 3600, "sample": sample}
    body |= {"baseline": _parse(options, baseline)} if baseline else {}
    _follow_baseline(
        options, options.server.post("/drift_monitors", body | ({"embedding_model": model} if model else {}))
    )


@app.command()
def baseline(options: ServerOptions, monitor: Monitor, source: Source = "") -> None:
    """Make another baseline, with which later checks compare, and wait for it."""
    body = {"source": _parse(options, source)} if source else {}
    _follow_baseline(options, options.server.post(f"/drift_monitors/{monitor}/baseline", body))


@app.command()
def check(
    options: ServerOptions,
    monitor: Monitor,
    source: Source = "",
    fail_if_drift: Annotated[
        bool, typer.Option("--fail-if-drift", help="End with exit code 1 where a feature is above its limit.")
    ] = False,
) -> None:
    """Compare the texts of now with the baseline, and print the distance and the limit of each feature."""
    path = f"/drift_monitors/{monitor}/checks"
    made = options.server.post(path, {"source": _parse(options, source)} if source else {})
    follow(options.server, made["id"])
    done = options.server.get(f"{path}/{made['id']}")
    if done["status"] != "completed":
        raise CliError(f"check {done['id']} is {done['status']}{_reason(done['error'])}")
    _show_check(options, done)
    if fail_if_drift and done["is_drift"]:
        raise CliError(f"drift of {_drifts(done)}")


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the monitors of your project, the newest first."""
    head = ("monitor", "name", "source", "baseline", "created")
    options.show_entries(options.server.pages("/drift_monitors", {}, limit), head, _row)


@app.command()
def checks(options: ServerOptions, monitor: Monitor, limit: Limit = 100) -> None:
    """List the checks of a monitor, the newest first."""
    entries = options.server.pages(f"/drift_monitors/{monitor}/checks", {}, limit)
    options.show_entries(entries, ("check", "status", "drift", "created"), _check_row)


@app.command()
def show(options: ServerOptions, monitor: Monitor) -> None:
    """Show a monitor with the state of its baseline."""
    shown = options.server.get(f"/drift_monitors/{monitor}")
    made = shown["baseline"]
    options.show(
        shown,
        f"{shown['name']}: {shown['source']['type']}, {shown['sample']} texts, {shown['embedding_model']}",
        f"  baseline {made['id']}: {made['status']}{_reason(made['error'])}",
    )


@app.command()
def delete(options: ServerOptions, monitor: Monitor) -> None:
    """Delete a monitor with its baseline and its checks."""
    options.show(options.server.delete(f"/drift_monitors/{monitor}"), f"{monitor} deleted")


def _follow_baseline(options: ServerOptions, made: dict[str, Any]) -> None:
    follow(options.server, made["baseline"]["id"])
    monitor = options.server.get(f"/drift_monitors/{made['id']}")
    done = monitor["baseline"]
    if done["status"] != "completed":
        raise CliError(f"the baseline of {monitor['id']} is {done['status']}{_reason(done['error'])}")
    options.show(monitor, monitor["id"])


def _parse(options: ServerOptions, text: str) -> dict[str, Any]:
    """Return the source that a text names. Upload the file where it is a path. Raises CliError."""
    if text in _ANSWERS:
        return {"type": text}
    if text.startswith("{"):
        try:
            source: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise CliError(f"this source is no JSON: {error}") from None
        return source
    return {"type": "file", "file_id": options.server.file_id(text, "user_data")}


def _show_check(options: ServerOptions, done: dict[str, Any]) -> None:
    if options.as_json:
        options.show(done)
        return
    show_table(("feature", "measure", "value", "limit", "drift", "texts"), map(_feature_row, done["features"]))
    say(f"{done['id']}: {_drifts(done) or 'no drift'}")


def _feature_row(feature: dict[str, Any]) -> tuple[object, ...]:
    numbers = f"{feature['value']:.4f}", f"{feature['limit']:.4f}"
    return feature["name"], feature["measure"], *numbers, _yes(feature["is_drift"]), feature["current_texts"]


def _drifts(done: dict[str, Any]) -> str:
    return ", ".join(feature["name"] for feature in done["features"] or () if feature["is_drift"])


def _reason(error: dict[str, Any] | None) -> str:
    if error is None:
        return ""
    line = f"line {error['line']}: " if error["line"] else ""
    return f": {line}{error['message']}"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _row(monitor: dict[str, Any]) -> tuple[object, ...]:
    baseline = monitor["baseline"]["status"]
    return monitor["id"], monitor["name"], monitor["source"]["type"], baseline, moment(monitor["created_at"])


def _check_row(entry: dict[str, Any]) -> tuple[object, ...]:
    return entry["id"], entry["status"], _drifts(entry) or _yes(entry["is_drift"]), moment(entry["created_at"])
