"""`nightmill workers`, `pause`, `resume`, `drain`: show and stop work, from here or from another machine."""

import threading
import time
from typing import Annotated, Any, Literal

import typer

from cli.errors import CliError
from cli.options import OperatorOptions
from cli.terminal import say, show_json, show_table

_LOOK = 0.5  # seconds
Kind = Annotated[
    Literal["queue", "model", "project", "worker"],
    typer.Argument(metavar="KIND", help="One of queue, model, project, worker."),
]
_NAMES = "A queue such as gpu.generate, a model or its alias, a project, or a worker as `nightmill workers` has it."
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help=_NAMES, show_default=False),
]


def pause(options: OperatorOptions, kind: Kind, name: Name) -> None:
    """Start no new work of a queue, model, project or worker. Running work goes on, and jobs are still accepted."""
    _set_pause(options, kind, name, on=True)


def resume(options: OperatorOptions, kind: Kind, name: Name) -> None:
    """Start work again that was paused or drained. This also starts a model again whose engine died too often."""
    _set_pause(options, kind, name, on=False)


def drain(
    options: OperatorOptions,
    kind: Kind,
    name: Name,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for running work.")] = 3600.0,
) -> None:
    """Pause a queue, model, project or worker, and wait until its running work has ended.

    Exit code 1 if work still runs after the timeout.
    """
    from jobs.fleet.workers import Acknowledgement

    acknowledgement = Acknowledgement()
    _set_pause(options, kind, name, on=True)
    ends = time.monotonic() + timeout
    while True:
        remaining = options.deployment.remaining(kind, name)
        unacknowledged = acknowledgement.pending_workers(remaining["heartbeats"])
        if not (unacknowledged or remaining["running"] or remaining["other_work"]):
            break
        if time.monotonic() > ends:
            raise CliError(f"{kind} {name}: {_describe_remaining(remaining, unacknowledged)}; it stays paused")
        threading.Event().wait(_LOOK)
    options.show({"kind": kind, "name": name, "running": 0}, f"{kind} {name}: nothing runs any more")


def _describe_remaining(remaining: dict[str, Any], unacknowledged: list[str]) -> str:
    claims, other_work = remaining["running"], remaining["other_work"]
    text = f"{claims} claims still run, and {other_work} clients, deliveries or removals"
    return f"{text}; not heard from since: {', '.join(unacknowledged)}" if unacknowledged else text


def workers(options: OperatorOptions) -> None:
    """Show the live workers, everything that is paused, and the models whose engines died too often."""
    deployment = options.deployment
    rows, held, quarantined = deployment.workers(), deployment.pauses(), deployment.quarantines()
    if options.as_json:
        show_json({"workers": rows, "paused": held, "quarantined": quarantined})
        return
    _table(rows)
    for entry in held:
        also = f" (also as {', '.join(entry['aliases'])})" if entry.get("aliases") else ""
        say(f"paused: {entry['kind']} {entry['name']}{also}")
        for line in (entry["reason"] or "").splitlines():
            say(f"    {line}")
    for row in quarantined:
        first, *more = row["description"].split("\n")
        say(first)
        for line in more:
            say(f"    {line}")


def _table(rows: list[dict[str, Any]]) -> None:
    from cli.wording import model_progress

    cells = []
    for row in rows:
        busy = f"{row['running']} of {row['slots']}"
        state = "; ".join([row["state"], *map(model_progress, row["loading"])])
        columns = (state, busy, row["other_work"], row["host"], row["pid"])
        cells.append((row["id"], " ".join(row["queues"]), " ".join(row["models"]), *columns))
    show_table(("worker", "queues", "models", "state", "running", "other work", "host", "pid"), cells)


def _set_pause(options: OperatorOptions, kind: Kind, name: str, *, on: bool) -> None:
    """Pause or resume, and print the result."""
    deployment = options.deployment
    change = deployment.pause(kind, name) if on else deployment.resume(kind, name)
    model = change["names"][0]
    what = f"model {model} ({name})" if kind == "model" and model != name else f"{kind} {name}"
    if change["freed"]:
        text = f"{what} is no longer quarantined"
    elif not change["changed"]:
        text = f"{what} was {'paused already' if on else 'not paused'}"
    else:
        text = f"{what} {'is paused' if on else 'goes on'}"
    options.show({"kind": kind, "name": name, "paused": on, "changed": change["changed"]}, text)
