"""`nightmill jobs`, `cancel`, `retry`, `watch`: list jobs, change them, and follow them to their ends."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.client.progress import Snapshot, doubts, fault
from cli.client.server import Server
from cli.errors import CliError
from cli.options import JobId, Limit, ServerOptions
from cli.output_files import is_replaced
from cli.terminal import moment, say, show_json
from cli.wording import kind_of, name_kind
from jobs.clock import duration


def jobs(
    options: ServerOptions,
    kind: Annotated[str, typer.Option(help="Only jobs of this kind, such as batch or fine-tuning.")] = "",
    state: Annotated[
        str, typer.Option(help="Only jobs in this state: such as running, or OpenAI's word for it, in_progress.")
    ] = "",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this metadata; may be repeated.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """List the jobs of your project, the newest first."""
    from cli.client.submission import parse_pairs

    query = {name: value for name, value in (("kind", kind_of(kind)), ("state", state)) if value}
    query |= {f"metadata[{name}]": value for name, value in parse_pairs(metadata or []).items()}
    head = ("job", "kind", "model", "state", "done", "failed", "tokens", "created", "duration")
    options.show_entries(options.server.pages("/jobs", query, limit), head, _row)


def _row(shown: dict[str, Any]) -> tuple[object, ...]:
    job = Snapshot.of(shown)
    done = f"{job.done} of {job.total}" if job.total else "-"
    tokens = job.input_tokens + job.output_tokens or "-"
    took = duration((job.ended_at or time.time()) - job.created_at)
    cells = (name_kind(job.kind), job.model, job.standing, done, job.failed, tokens)
    return job.id, *cells, moment(job.created_at), took


def cancel(options: ServerOptions, job: JobId) -> None:
    """Stop a job. Its finished results stay and can be downloaded."""
    answer = options.server.post(f"/jobs/{job}/cancel")
    options.show(answer, f"{answer['id']} {answer['state']}")


def retry(
    options: ServerOptions,
    job: JobId,
    which: Annotated[
        Literal["failed", "length", "all"],
        typer.Option(help="Failed and missing requests, those cut off at the token limit (length), or all."),
    ] = "failed",
    override: Annotated[
        str,
        typer.Option(metavar="JSON", help="Fields that replace those of each request, such as '{\"max_tokens\": 64}'."),
    ] = "",
) -> None:
    """Run requests of an ended job again as a new job, and print the new job's id."""
    try:
        overrides: Any = json.loads(override) if override else {}
    except ValueError as error:
        raise CliError(f"--override is no JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise CliError("--override is no JSON object")
    made = options.server.post(f"/jobs/{job}/retry", {"which": which, "overrides": overrides})
    options.show(made, made["id"])


_INTERRUPTED = 130


def watch(
    options: ServerOptions,
    job: JobId,
    output: Annotated[
        Path | None, typer.Option(help="Write the answers to this file when the job ends, and errors beside it.")
    ] = None,
) -> None:
    """Watch a job until it ends. Ctrl-C stops watching, not the job. Exit code 1 if it did not succeed."""
    from cli.client.submission import output_paths
    from cli.output_files import require_writable

    if output:
        require_writable(output)
    answers, errors = output_paths(Path(job), output)
    save = partial(fetch, answers=answers, errors=errors) if output else None
    watched(options.server, job, save, as_json=options.as_json)


Save = Callable[[Server, Snapshot], None]


def watched(server: Server, job_id: str, save: Save | None, *, as_json: bool = False) -> Snapshot:
    """Follow a job to its end, print the outcome, and `save` its results. Return its last state."""
    from cli.client.progress import follow

    try:
        job = follow(server, job_id)
    except KeyboardInterrupt:
        say("", err=True)
        say(f"{job_id} goes on: `nightmill watch {job_id}`, `nightmill cancel {job_id}`", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    tell(job)
    if as_json:
        show_json(server.get(f"/jobs/{job_id}"))
    if save:
        save(server, job)
    require_success(job)
    return job


_SHOWN = 10


def tell(job: Snapshot) -> None:
    """Print the outcome of a job to standard error."""
    thought = f", {job.reasoning_tokens} of them reasoning" if job.reasoning_tokens else ""
    tokens = f"{job.input_tokens} tokens in, {job.output_tokens} out{thought}"
    say(f"{job.id} {job.state}: {job.completed} completed, {job.failed} failed of {job.total}; {tokens}", err=True)
    for doubt in doubts(job.outcomes):
        say(f"  {doubt}", err=True)
    for error in job.errors[:_SHOWN]:
        say(f"  {fault(error)}", err=True)
    if len(job.errors) > _SHOWN:
        say(f"  and {len(job.errors) - _SHOWN} more errors", err=True)


def fetch(server: Server, job: Snapshot, answers: Path, errors: Path) -> None:
    """Download the result files of a job, also of a job that was stopped early.

    Where it has none, remove the file of an earlier job, which could be mistaken for a result of this job.
    """
    for file_id, path, what in ((job.output_file_id, answers, "answers"), (job.error_file_id, errors, "errors")):
        if file_id:
            server.download(file_id, path)
            say(f"{what}: {path}", err=True)
        elif path.is_file() and is_replaced(path):
            path.resolve().unlink()
            say(f"{what}: none; removed what was in {path}", err=True)


def require_success(job: Snapshot) -> None:
    """Raise CliError for a job that did not succeed, so that the exit code is 1."""
    if job.state != "succeeded":
        raise CliError(f"{job.id} {job.state}")
