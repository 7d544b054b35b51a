"""`nightmill finetune`: train models, watch their loss, and write what came of it."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.client.server import Server, ServerUnavailable, require_files
from cli.errors import CliError
from cli.groups import Group
from cli.options import After, Limit, ServerOptions
from cli.terminal import moment, say, show_json

app = Group("Train models on your data, and steer the jobs that do it.")
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill finetune list` shows it.")]
_ENDS: Final = ("succeeded", "failed", "cancelled")
_LOOK: Final = 1.0  # seconds between two looks at a job that is watched
_PATIENCE: Final = 60  # looks that may fail one after another while the server is away
_SHOWN: Final = 20
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 60  # of a curve


@app.command()
def submit(
    options: ServerOptions,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A path to upload, or the id of an uploaded file: rows of messages.")
    ],
    model: Annotated[str, typer.Option(help="The base, or a tuned model to go on from.")],
    validation: Annotated[str, typer.Option(metavar="FILE", help="Validation rows: a path, or an id.")] = "",
    holdout: Annotated[
        float, typer.Option(min=0, max=0.9, help="The fraction of FILE to validate on, instead of a file.")
    ] = 0.0,
    general: Annotated[
        str, typer.Option(metavar="FILE", help="Rows to measure forgetting with: a path, or an id.")
    ] = "",
    max_seconds: Annotated[
        int, typer.Option(min=0, help="Fail after so long a training, with a checkpoint. 0: no limit.")
    ] = 0,
    suffix: Annotated[str, typer.Option(help="A part of the new model's name.")] = "",
    method: Annotated[str, typer.Option(help="supervised or dpo.")] = "supervised",
    peft: Annotated[str, typer.Option(help="lora, qlora, auto (by memory) or full.")] = "lora",
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the data. 0: the server decides.")] = 0,
    batch_size: Annotated[int, typer.Option(min=0, help="Examples of one step. 0: the server decides.")] = 0,
    multiplier: Annotated[
        float, typer.Option("--learning-rate-multiplier", min=0, help="Of the default learning rate. 0: 1.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=-1, help="For the same order of the data. -1: drawn.")] = -1,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Stored with the job; may be given several times.")
    ] = None,
    after: After = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Examine the files, and estimate seconds and memory.")
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Watch the job to its end. With --dry-run: measure what cannot be estimated.")
    ] = True,
) -> None:
    """Train a model on a file of examples. Exit code 1 if the files are not valid or the job fails."""
    from cli.client.submission import parse_pairs

    if validation and holdout:
        raise CliError("--holdout means nothing with --validation: leave one of them out")
    require_files(filter(None, (file, validation, general)), "nothing was created")
    chosen = {"n_epochs": epochs, "batch_size": batch_size, "learning_rate_multiplier": multiplier}
    given = {name: value for name, value in chosen.items() if value}
    body: dict[str, Any] = {"model": model, "peft": peft}
    body["method"] = {"type": method, method: {"hyperparameters": given}}
    body |= {"validation": {"type": "holdout", "fraction": holdout}} if holdout else {}
    body |= {"seed": seed} if seed >= 0 else {}
    body |= {"early_stopping": {"max_seconds": max_seconds}} if max_seconds else {}
    server = options.server
    body["training_file"] = server.file_id(file, "fine-tune")
    more_files = {"validation_file": validation, "general_file": general}
    body |= {field: server.file_id(name, "fine-tune") for field, name in more_files.items() if name}
    if dry_run:
        _examine(options, body, wait=wait)
        return
    more = {"suffix": suffix, "metadata": parse_pairs(metadata or []), "after": after}
    made = server.post("/fine_tuning/jobs", body | {name: value for name, value in more.items() if value})
    if not (wait and options.as_json):
        options.show(made, made["id"])
    if wait:
        _watch(options, made["id"])


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 20) -> None:
    """List the fine-tuning jobs of your project, the newest first."""
    head = ("job", "status", "base", "model", "created")
    options.show_entries(options.server.pages("/fine_tuning/jobs", {}, limit), head, _job_row)


@app.command()
def watch(options: ServerOptions, job: Job) -> None:
    """Print the events of a job until it ends, then its loss. Exit code 1 if it failed or was cancelled."""
    _watch(options, job)


@app.command()
def curve(options: ServerOptions, job: Job) -> None:
    """Draw the loss of a job, as far as it has trained. With --json, print each step."""
    steps = _steps(options.server, job)
    if options.as_json:
        show_json(steps)
    elif not steps:
        say("no step has been trained yet")
    else:
        for line in drawn(steps):
            say(line)


@app.command()
def cancel(options: ServerOptions, job: Job) -> None:
    """Stop a job. Its checkpoints stay."""
    _post(options, job, "cancel")


@app.command()
def pause(options: ServerOptions, job: Job) -> None:
    """Hold a job back. Training that runs stops after a checkpoint."""
    _post(options, job, "pause")


@app.command()
def resume(options: ServerOptions, job: Job) -> None:
    """Let a paused job go on from its last checkpoint."""
    _post(options, job, "resume")


@app.command()
def checkpoints(options: ServerOptions, job: Job, limit: Limit = 20) -> None:
    """List the checkpoints of a job, the newest first."""
    head = ("checkpoint", "step", "train loss", "validation loss", "created")
    options.show_entries(options.server.pages(f"/fine_tuning/jobs/{job}/checkpoints", {}, limit), head, _checkpoint_row)


@app.command()
def export(
    options: ServerOptions,
    model: Annotated[
        str, typer.Argument(metavar="JOB|MODEL", help="The id of a job, or the name of a tuned model or a checkpoint.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    checkpoint: Annotated[int, typer.Option(min=0, metavar="STEP", help="A checkpoint. 0: the result.")] = 0,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write one set of weights: base and adapter together.")
    ] = False,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For --merge: the folder of the base. Else the models file's.")
    ] = None,
) -> None:
    """Write a tuned model as files that Hugging Face tools and `vllm serve` read.

    --merge computes on this machine, and needs the extra `train` here.
    """
    from cli.client import model_export

    model_export.require_new(output)
    if base is not None and not merge:
        raise CliError("--base means nothing without --merge")
    server = options.server
    name = model_export.model_of(server, model, checkpoint or None)
    if merge:
        listed = model_export.export_merged(server, name, output, options.data_dir, base)
    else:
        listed = model_export.export(server, name, output)
    kind = "model" if merge or listed["method"] == "full" else "adapter"
    made = {"model": name, "base": listed["base"], "kind": kind, "path": str(output)}
    options.show(made, f"{output}: {kind} of {name}")


def _examine(options: ServerOptions, body: dict[str, Any], *, wait: bool) -> None:
    from cli.client.progress import fault

    server = options.server
    report = server.post("/fine_tuning/jobs/validate", body | {"measure": wait}, timeout=180.0)
    if report["measuring_job"] is not None:
        say("no job has trained this model so: three steps are trained to measure them", err=True)
        check_succeeded(await_end(server, report["measuring_job"], lambda _event: None))
        report = server.post("/fine_tuning/jobs/validate", body, timeout=180.0)
    for warning in report["warnings"]:
        say(warning, err=True)
    errors = report["errors"]["data"]
    if not errors:
        text = f"{report['examples']} examples, {report['tokens']} tokens, {report['steps']} steps"
        if estimate := report["estimate"]:
            text += f", about {estimate['seconds']} s and {estimate['memory_bytes'] / 1e9:.2f} GB"
        options.show(report, text)
        return
    if options.as_json:
        show_json(report)
    for error in errors[:_SHOWN]:
        say(fault(error), err=True)
    many = f"{len(errors)} or more" if report["errors_truncated"] else str(len(errors))
    raise CliError(f"the files are not valid; errors: {many}")


def _watch(options: ServerOptions, job_id: str) -> None:
    """Print the events of a job until it ends. Raises CliError when it does not succeed."""

    def print_event(event: dict[str, Any]) -> None:
        options.show(event, f"{moment(event['created_at'])}  {event['message']}")

    _show_end(options, await_end(options.server, job_id, print_event))


def await_end(server: Server, job_id: str, print_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return a job that has ended; hand over its events until then."""
    seen: set[str] = set()
    failures = 0
    while True:
        try:
            job = server.get(f"/fine_tuning/jobs/{job_id}")
            events = _new_events(server, job_id, seen)
        except ServerUnavailable:
            failures += 1
            if failures > _PATIENCE:
                raise
        else:
            failures = 0
            for event in events:
                print_event(event)
            if job["status"] in _ENDS and job["finished_at"] is not None:
                return dict(job)
        threading.Event().wait(_LOOK)


def _show_end(options: ServerOptions, job: dict[str, Any]) -> None:
    steps = [] if options.as_json else _steps(options.server, job["id"])
    for line in drawn(steps) if steps else ():
        say(line)
    check_succeeded(job)
    options.show(job, str(job["fine_tuned_model"]))


def check_succeeded(job: dict[str, Any]) -> None:
    if job["status"] != "succeeded":
        why = f": {job['error']['message']}" if job["error"] else ""
        raise CliError(f"{job['id']} {job['status']}{why}")


def _new_events(server: Server, job_id: str, seen: set[str]) -> list[dict[str, Any]]:
    """Return the events that were not seen before, the oldest first. Those of one look are few: pages end at one."""
    events: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 100}
    while True:
        page = server.get(f"/fine_tuning/jobs/{job_id}/events", query)
        new = [event for event in page["data"] if event["id"] not in seen]
        events += new
        if not page["has_more"] or len(new) < len(page["data"]):
            break
        query["after"] = page["last_id"]
    seen.update(event["id"] for event in events)
    return events[::-1]


def _steps(server: Server, job_id: str) -> list[dict[str, Any]]:
    """Return what the events tell of each step, the first step first."""
    events = _new_events(server, job_id, set())
    return [event["data"] for event in events if event["type"] == "metrics" and event["data"]]


def drawn(steps: Sequence[dict[str, Any]]) -> list[str]:
    """Return the losses as lines of bars, one for training and one for validation where there is one."""
    lines = []
    for name, label in (("train_loss", "training loss"), ("valid_loss", "validation loss")):
        values = [float(step[name]) for step in steps if step.get(name) is not None]
        if values:
            lines.append(f"{label:<15}  {values[0]:.3f} {_bars(values)} {values[-1]:.3f}")
    return lines


def _bars(values: Sequence[float]) -> str:
    """Return one character for each value, or for each of 60 groups of values that follow each other."""
    count = min(len(values), _WIDTH)
    groups = [values[n * len(values) // count : (n + 1) * len(values) // count] for n in range(count)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _post(options: ServerOptions, job: str, verb: str) -> None:
    changed = options.server.post(f"/fine_tuning/jobs/{job}/{verb}")
    options.show(changed, f"{changed['id']} {changed['status']}")


def _job_row(job: dict[str, Any]) -> tuple[object, ...]:
    return job["id"], job["status"], job["model"], job["fine_tuned_model"] or "-", moment(job["created_at"])


def _checkpoint_row(row: dict[str, Any]) -> tuple[object, ...]:
    metrics = row["metrics"]
    losses = (_loss(metrics["train_loss"]), _loss(metrics["valid_loss"]))
    return row["fine_tuned_model_checkpoint"], row["step_number"], *losses, moment(row["created_at"])


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
