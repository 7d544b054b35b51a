"""`nightmill results JOB`: write the results of a job, alone or joined with their requests."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, TextIO

import typer

from cli.client.joining import COLUMNS, Row
from cli.client.progress import Snapshot, fault
from cli.client.server import Server, connect
from cli.errors import CliError
from cli.options import ApiKey, DataDir, Url
from cli.output_files import require_writable, whole
from cli.terminal import Screen, byte_output, say, text_output

if TYPE_CHECKING:
    from cli.client.joining import Row


def results(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")],
    join: Annotated[
        bool, typer.Option("--join", help="Put each answer beside its request, in the order of the input.")
    ] = False,
    format_: Annotated[
        Literal["jsonl", "csv", "parquet"],
        typer.Option("--format", help="csv and parquet are always joined. In csv, null and empty text look the same."),
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Write the results of a job. Of a running job: the results that are finished so far."""
    from jobs.requests.endpoints import EMBEDDINGS

    if output:
        require_writable(output)
    with connect(url, api_key, data_dir) as server:
        shown = server.get(f"/jobs/{job}")
        snapshot = Snapshot.of(shown)
        _require_files(snapshot)
        if not join and format_ == "jsonl":
            _raw(server, snapshot, output)
            return
        if not snapshot.ended:
            raise CliError(f"{job} is {snapshot.state}; its results can be joined when it has ended")
        with _joined(server, snapshot, shown["overrides"]) as rows:
            count = writer_of(format_, vectors=shown["endpoint"] == EMBEDDINGS)(rows, output)
    say(f"{count} results{f': {output}' if output else ''}", err=True)


def _require_files(job: Snapshot) -> None:
    """Raise CliError, with the job's errors, for a job that failed before any of its requests ran."""
    if job.state == "failed" and not (job.output_file_id or job.error_file_id):
        raise CliError("\n".join([f"{job.id} failed and has no results", *map(fault, job.errors)]))


def _raw(server: Server, job: Snapshot, output: Path | None) -> None:
    """Write OpenAI's output and error lines."""
    with ExitStack() as stack:
        out = stack.enter_context(whole(output)) if output else byte_output()
        if not job.ended:
            out.writelines(line + b"\n" for line in stack.enter_context(server.finished(job.id)))
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for file_id in filter(None, (job.output_file_id, job.error_file_id)):
            server.download(file_id, folder / file_id)
            with (folder / file_id).open("rb") as content:
                out.writelines(content)


@contextmanager
def _joined(server: Server, job: Snapshot, overrides: "Row") -> Iterator[Iterator["Row"]]:
    """Yield the joined rows, read from copies of the job's three files."""
    from cli.client.joining import joined

    if not job.input_file_id:
        raise CliError(f"{job.id} has no input file")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def fetched(file_id: str | None) -> BinaryIO | list[bytes]:
            if not file_id:
                return []
            server.download(file_id, folder / file_id)
            return stack.enter_context((folder / file_id).open("rb"))

        inputs, outputs, errors = map(fetched, (job.input_file_id, job.output_file_id, job.error_file_id))
        yield joined(inputs, outputs, errors, overrides)


_AT_ONCE = 1000  # rows of a Parquet row group
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
Writer = Callable[[Iterable[Row], Path | None], int]


def write_jsonl(rows: Iterable[Row], path: Path | None) -> int:
    """Write one JSON object a line with the whole request and response; return the number of rows."""
    count = 0
    with _text(path) as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_csv(rows: Iterable[Row], path: Path | None) -> int:
    """Write CSV (RFC 4180) with a header; return the number of rows.

    Objects and lists are JSON in their cells. Null and empty text are empty cells. A text that a spreadsheet would run
    as a formula gets a leading `'`.
    """
    count = 0
    with _text(path) as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_inert(_cell(row[name])) for name in COLUMNS])
            count += 1
    return count


def write_parquet(rows: Iterable[Row], path: Path | None, *, vectors: bool = False) -> int:
    """Write the columns of the CSV as Parquet; `vectors` are lists of 32-bit floats. Return the number of rows."""
    import pyarrow as pa
    from pyarrow import parquet

    if path is None:
        raise CliError("name the Parquet file with --output")
    rows, count, schema = iter(rows), 0, _schema(pa, vectors=vectors)
    with whole(path) as out, parquet.ParquetWriter(out, schema) as writer:
        while page := list(islice(rows, _AT_ONCE)):
            flat = [{**row, "request": _cell(row["request"]), "response": _cell(row["response"])} for row in page]
            writer.write_table(pa.Table.from_pylist(flat, schema=schema))
            count += len(page)
    return count


def writer_of(format_: str, *, vectors: bool) -> Writer:
    """Return the function that writes rows as `jsonl`, `csv` or `parquet`. `vectors`: answers are embeddings."""
    if format_ == "parquet":
        return partial(write_parquet, vectors=vectors)
    return write_csv if format_ == "csv" else write_jsonl


def _schema(pa, *, vectors: bool):  # type: ignore[no-untyped-def]
    kinds = {name: pa.int64() for name in ("status_code", "input_tokens", "output_tokens")}
    if vectors:
        kinds["answer"] = pa.list_(pa.float32())
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _inert(value: object) -> object:
    """Return `value` so that no spreadsheet runs it, as OWASP's "CSV Injection" advises. Numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


@contextmanager
def _text(path: Path | None) -> Iterator[TextIO | Screen]:
    """Yield standard output, or a file that appears when it is complete."""
    if path is None:
        yield text_output()
        return
    with whole(path) as out, io.TextIOWrapper(out, encoding="utf-8", newline="") as text:
        yield text
