"""`nightmill submit FILE`: check, upload, create, watch, download."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.client.progress import fault, reasoning_of
from cli.client.server import Server
from cli.commands.jobs import fetch, watched
from cli.commands.results import save_table
from cli.errors import CliError
from cli.options import After, ServerOptions
from cli.terminal import say
from jobs.clock import duration

if TYPE_CHECKING:
    from cli.client.tables import Template

_SHOWN = 20
#: Options that have no meaning together with another option.
_MEANINGLESS: Final = {
    "--sample": ("--at", "--after", "--every", "--output", "--no-wait", "--no-check"),
    "--every": ("--at", "--after", "--output"),
    "--no-wait": ("--output",),
}


def submit(
    options: ServerOptions,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Requests as in OpenAI's Batch API, one a line, or with --prompt a table; - is standard input.",
        ),
    ],
    prompt: Annotated[
        str, typer.Option(help="FILE is a table (CSV): ask this of each row. {{column}} stands for the row's value.")
    ] = "",
    model: Annotated[str, typer.Option(help="Of a table: the model that is asked.")] = "",
    schema: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS|FILE",
            help="Of a table: the columns of the answers, such as 'capital, people:integer, size:small|large', "
            "or a JSON schema in a .json file. Else the answer is one column.",
        ),
    ] = "",
    system: Annotated[str, typer.Option(help="Of a table: instructions before each prompt.")] = "",
    temperature: Annotated[float | None, typer.Option(help="Of a table: how freely the model answers.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of a table: tokens of an answer at most.")] = None,
    id_column: Annotated[str, typer.Option(help="Of a table: the column with the custom_id. Else row-1, row-2 …")] = "",
    endpoint: Annotated[str, typer.Option(help="Such as /v1/chat/completions. Else the url of the first line.")] = "",
    window: Annotated[str, typer.Option(help="The time allowed, such as 90m, 6h, 24h or 7d.")] = "24h",
    priority: Annotated[int, typer.Option(help="From -100 to 100. Higher runs first within the project.")] = 0,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Stored with the batch; may be given several times.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Watch the batch to its end and download the results.")] = True,
    check: Annotated[bool, typer.Option(help="Have the server check the file before anything is created.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(help="The file for answers; errors go beside it. Of a table: .csv or .parquet. Else beside FILE."),
    ] = None,
    at: Annotated[
        str, typer.Option(metavar="TIME", help="Start no earlier than this, such as 2026-12-24T18:00 (local time).")
    ] = "",
    after: After = None,
    every: Annotated[
        str, typer.Option(metavar="CRON", help="Submit the file at these times, such as '0 3 * * *', and not now.")
    ] = "",
    timezone: Annotated[str, typer.Option(help="The time zone of --every. Else UTC.")] = "",
    sample: Annotated[
        int, typer.Option(min=0, help="Run only this many requests, spread over the file, and estimate the rest.")
    ] = 0,
) -> None:
    """Run a file of requests as one batch: check, upload, create, watch, download.

    With --prompt FILE is a table: each row becomes a request, and the answers become columns beside those of the row.
    """
    from cli.client.submission import guess_endpoint, output_paths, parse_pairs, parse_time, spool
    from cli.client.tables import Template, parse_schema
    from cli.output_files import require_writable

    chosen = {"--at": at, "--after": after, "--every": every, "--timezone": timezone, "--sample": sample}
    _check_together(chosen | {"--output": output, "--no-wait": not wait, "--no-check": not check})
    columns = parse_schema(schema) if schema else None
    template = Template(model, prompt, system, columns, temperature, max_tokens, id_column)
    _check_table(file, endpoint, template)
    name = Path("stdin") if str(file) == "-" else file
    answers, errors = output_paths(name, output, table=bool(prompt))
    if wait and not sample and not every:
        require_writable(answers)
    begin: dict[str, Any] = {"not_before": parse_time(at)} if at else {}
    begin |= {"after": after} if after else {}
    with spool(file) as given, _requests_of(given, template) as source:
        server = options.server
        request: dict[str, Any] = {
            "endpoint": endpoint or guess_endpoint(source),
            "completion_window": window,
            "priority": priority,
            "metadata": parse_pairs(metadata or []) or None,
        }
        if sample:
            _sample(options, source, sample, request)
            return
        file_id = server.upload(source)
        if check:
            check_file(server, file_id, request["endpoint"])
        if every:
            schedule = {"cron": every, "timezone": timezone or "UTC", "batch": {"input_file_id": file_id, **request}}
            made = server.post("/schedules", schedule)
        else:
            made = server.post("/batches", {"input_file_id": file_id, **request, **begin})
        watches = wait and not every
        if not (options.as_json and watches):
            options.show(made, made["id"])
        if watches:
            save = partial(save_table, path=answers) if prompt else partial(fetch, answers=answers, errors=errors)
            watched(server, made["id"], save, as_json=options.as_json)


def _requests_of(file: Path, template: "Template") -> AbstractContextManager[Path]:
    """Return a context with the file of requests: the file itself, or one that is made of a table."""
    from cli.client.tables import requests_of

    return requests_of(file, template) if template.prompt else nullcontext(file)


def _check_table(file: Path, endpoint: str, template: "Template") -> None:
    """Raise CliError where a table lacks a prompt or a model, and for options of a table with a file of requests."""
    from cli.client.tables import SUFFIXES, Template
    from jobs.requests.endpoints import CHAT

    if template.prompt:
        if not template.model:
            raise CliError("a table needs a --model; `nightmill models` lists them")
        if endpoint not in ("", CHAT):
            raise CliError(f"--endpoint means nothing with --prompt: rows are asked at {CHAT}")
    elif template != Template("", ""):
        raise CliError("--model, --schema, --system, --temperature, --max-tokens and --id-column need a --prompt")
    elif file.suffix in SUFFIXES:
        raise CliError(f"{file} is a table: say with --prompt what is asked of each row")


def _check_together(given: Mapping[str, object]) -> None:
    """Raise CliError for an option that another option makes meaningless."""
    for option, others in _MEANINGLESS.items():
        for other in others:
            if given[option] and given[other]:
                raise CliError(f"{other} means nothing with {option}: leave one of them out")
    if given["--timezone"] and not given["--every"]:
        raise CliError("--timezone means nothing without --every: leave it out")


def _sample(options: ServerOptions, file: Path, count: int, request: dict[str, Any]) -> None:
    """Run a batch of some of the lines, and estimate the cost of all. The answers stay on the server."""
    server = options.server
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder) / f"sample-of-{file.name}"
        total = write_sample(file, count, some)
        file_id = server.upload(some)
    check_file(server, file_id, request["endpoint"])
    batch = server.post("/batches", {"input_file_id": file_id, **request})
    say(batch["id"], err=options.as_json)
    watched(server, batch["id"], None)
    job = server.get(f"/jobs/{batch['id']}")
    estimate = extrapolate(job, total)
    options.show({**job, "estimate": estimate}, estimate)


def check_file(server: Server, file_id: str, endpoint: str) -> None:
    """Validate the file and print what it holds. Delete an invalid file, and print its errors."""
    report = server.post("/batches/validate", {"input_file_id": file_id, "endpoint": endpoint})
    if report["valid"]:
        tokens = report["estimate"]["input_tokens"]
        eta = f", {duration(report['eta_seconds'])} at the last batch's pace" if report["eta_seconds"] else ""
        say(
            f"{report['requests']} requests for {report['model']}, about {tokens} input tokens (bytes / 4){eta}",
            err=True,
        )
        return
    server.delete(f"/files/{file_id}")
    errors = report["errors"]["data"]
    for error in errors[:_SHOWN]:
        say(fault(error), err=True)
    many = f"{len(errors)} or more" if report["errors_truncated"] else str(len(errors))
    raise CliError(f"nothing was created; errors in the file: {many}")


_WORTH_TELLING = 2.0  # seconds of waiting of waiting
_BEFORE = "; before that it waited {} for its turn and its model, which comes once and not with each request"


def write_sample(source: Path, count: int, target: Path) -> int:
    """Write `count` lines, spread evenly over the file; return the number of lines in the file."""
    total = sum(1 for _ in _requests(source))
    if not total:
        raise CliError(f"{source} holds no requests")
    taken = min(count, total)
    numbers = {number * total // taken for number in range(taken)}
    with target.open("wb") as out:
        out.writelines(line for number, line in enumerate(_requests(source)) if number in numbers)
    return total


def _requests(source: Path) -> Iterator[bytes]:
    """Yield the lines that are not blank, each with its line end."""
    with source.open("rb") as handle:
        for line in handle:
            if line.strip():
                yield line if line.endswith(b"\n") else line + b"\n"


def extrapolate(job: Mapping[str, Any], total: int) -> str:
    """Return what all lines would take, from a job that ran some. Its waiting time does not grow with the lines."""
    usage, done = job["usage"], job["progress"]["completed"] + job["progress"]["failed"]
    if not done:
        raise CliError("the sample has answered nothing, which says nothing of the rest")
    times = total / done
    thought = round(reasoning_of(usage) * times)
    tokens = f"{round(usage['input_tokens'] * times):,} tokens in, {round(usage['output_tokens'] * times):,} out"
    tokens += f" ({thought:,} of them reasoning)" if thought else ""
    failed = f", {round(job['progress']['failed'] * times):,} of them failed" if job["progress"]["failed"] else ""
    text = f"all {total:,} requests, going by these {done}: about {tokens}{failed}"
    worked = job.get("worked_seconds")
    if worked is None:
        return text
    text += f"; {duration(worked * times)} at the sample's pace, less where the engine takes more at once"
    waited = (job["finalizing_at"] or 0) - job["created_at"] - worked
    return f"{text}{_BEFORE.format(duration(waited)) if waited >= _WORTH_TELLING else ''}"
