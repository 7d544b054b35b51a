"""`nightmill results JOB`: write the results of a job, alone or joined with their requests."""

import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal, TextIO
from urllib.parse import quote, urlencode

import typer

from cli.client.progress import Snapshot, fault
from cli.client.server import Server, connect
from cli.errors import CliError
from cli.options import ApiKey, DataDir, JobId, Url
from cli.output_files import require_writable, whole
from cli.terminal import Screen, byte_output, say, text_output
from jobs.batches import exports
from jobs.batches.joining import COLUMNS, Row
from jobs.batches.tabulation import Kind, tabulate


def results(
    job: JobId,
    join: Annotated[
        bool, typer.Option("--join", help="Put each answer beside its request, in the order of the input.")
    ] = False,
    format_: Annotated[
        Literal["jsonl", "csv", "parquet"],
        typer.Option("--format", help="csv and parquet are always joined. In csv, null and empty text look the same."),
    ] = "jsonl",
    table: Annotated[
        bool, typer.Option("--table", help="The columns of the table that was submitted, and those of the answers.")
    ] = False,
    state: Annotated[
        Literal["succeeded", "failed"] | None, typer.Option(help="Only results in this state. This joins them.")
    ] = None,
    code: Annotated[str, typer.Option(help="Only results that failed with this error code. This joins them.")] = "",
    custom_id: Annotated[str, typer.Option(help="Only the result of this request. This joins it.")] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT", help="Only rows with this text in a column of the table. This joins them."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Write the results of a job. Of a running job: the results that are finished so far."""
    from cli.client.submission import parse_pairs
    from jobs.requests.endpoints import EMBEDDINGS

    columns = parse_pairs(column or [])
    if output:
        require_writable(output)
    with connect(url, api_key, data_dir) as server:
        shown = server.get(f"/jobs/{job}")
        snapshot = Snapshot.of(shown)
        _require_files(snapshot)
        given = {"state": state, "code": code, "custom_id": custom_id}
        chosen = {name: value for name, value in given.items() if value}
        chosen |= {f"column[{name}]": text for name, text in columns.items()}
        if not (join or table or chosen) and format_ == "jsonl":
            _write_raw(server, snapshot, output)
            return
        if not snapshot.has_ended:
            raise CliError(f"{job} is {snapshot.state}; its results can be joined when it has ended")
        with _joined_rows(server, job, chosen) as rows:
            kinds = exports.VECTOR_KINDS if shown["endpoint"] == EMBEDDINGS else exports.KINDS
            count = write(*(tabulate(rows) if table else (kinds, rows)), format_, output)
    say(f"{count} results{f': {output}' if output else ''}", err=True)


def save_table(server: Server, job: Snapshot, path: Path) -> None:
    """Write the results of an ended job as a table: Parquet or JSON Lines by the suffix of `path`, else CSV."""
    if not (job.output_file_id or job.error_file_id):
        return
    format_ = {".parquet": "parquet", ".jsonl": "jsonl"}.get(path.suffix, "csv")
    query = urlencode({"format": format_, "join": "true", "table": "true"})
    server.fetch(f"/jobs/{quote(job.id, safe='')}/results?{query}", path)
    say(f"table: {path}", err=True)


def _require_files(job: Snapshot) -> None:
    """Raise CliError, with the job's errors, for a job that failed before any of its requests ran."""
    if job.state == "failed" and not (job.output_file_id or job.error_file_id):
        raise CliError("\n".join([f"{job.id} failed and has no results", *map(fault, job.errors)]))


def _write_raw(server: Server, job: Snapshot, output: Path | None) -> None:
    """Write OpenAI's output and error lines."""
    with ExitStack() as stack:
        out = stack.enter_context(whole(output)) if output else byte_output()
        if not job.has_ended:
            out.writelines(line + b"\n" for line in stack.enter_context(server.finished_lines(job.id)))
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for file_id in filter(None, (job.output_file_id, job.error_file_id)):
            server.download(file_id, folder / file_id)
            with (folder / file_id).open("rb") as content:
                out.writelines(content)


@contextmanager
def _joined_rows(server: Server, job_id: str, chosen: Mapping[str, str]) -> Iterator[Iterator[Row]]:
    """Yield the joined rows of an ended job, which the server has selected, from a copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "joined.jsonl"
        server.fetch(f"/jobs/{quote(job_id, safe='')}/results?{urlencode({'join': 'true', **chosen})}", copy)
        with copy.open(encoding="ascii") as lines:
            yield map(json.loads, lines)


def write_jsonl(rows: Iterable[Row], path: Path | None) -> int:
    """Write one JSON object a line; return the number of rows."""
    return _write(exports.json_lines(rows), path)


def write_csv(rows: Iterable[Row], path: Path | None, columns: Iterable[str] = COLUMNS) -> int:
    """Write CSV with a header; return the number of rows."""
    return _write(exports.csv_lines(rows, columns), path) - 1


def _write(texts: Iterable[str], path: Path | None) -> int:
    """Write texts; return how many."""
    count = 0
    with _text(path) as out:
        for text in texts:
            out.write(text)
            count += 1
    return count


def write_parquet(rows: Iterable[Row], path: Path | None, kinds: Mapping[str, Kind] = exports.KINDS) -> int:
    """Write Parquet with columns of these kinds. Return the number of rows."""
    if path is None:
        raise CliError("name the Parquet file with --output")
    count = 0

    def tally() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    with whole(path) as out:
        out.writelines(exports.parquet_pieces(tally(), kinds))
    return count


def write(kinds: Mapping[str, Kind], rows: Iterable[Row], format_: exports.Format, path: Path | None) -> int:
    """Write rows as `jsonl`, `csv` or `parquet`, with columns of these kinds. Return the number of rows."""
    if format_ == "parquet":
        return write_parquet(rows, path, kinds)
    return write_csv(rows, path, kinds) if format_ == "csv" else write_jsonl(rows, path)


@contextmanager
def _text(path: Path | None) -> Iterator[TextIO | Screen]:
    """Yield standard output, or a file that appears when it is complete."""
    if path is None:
        yield text_output()
        return
    with whole(path) as out, io.TextIOWrapper(out, encoding="utf-8", newline="") as text:
        yield text
