"""Read the input file and the options of a batch before anything is sent."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from cli.errors import CliError
from jobs.batches.lines import MAX_LINE_BYTES


@contextmanager
def spool(file: Path) -> Iterator[Path]:
    """Yield the path of `file`, or for `-` the path of a temporary copy of standard input."""
    if str(file) != "-":
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "stdin.jsonl"
        with copy.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        yield copy


def read_json(file: Path) -> Any:
    """Return the value in a JSON file. Raises CliError."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise CliError(f"{file} is no JSON: {error}") from None


def guess_endpoint(path: Path) -> str:
    """Return the `url` of the first line. Raises CliError when it has none."""
    return first_request(path)[0]


def first_request(path: Path) -> tuple[str, Any]:
    """Return `url` and model of the first line. Raises CliError when it has no `url`."""
    line = _first_line(path)
    try:
        request: Any = json.loads(line)
    except ValueError:
        raise CliError(f"{path}, line 1 is no JSON object; name the endpoint with --endpoint") from None
    url = request.get("url") if isinstance(request, dict) else None
    if not isinstance(url, str):
        raise CliError(f"{path}, line 1 has no 'url'; name the endpoint with --endpoint")
    body = request.get("body")
    return url, body.get("model") if isinstance(body, dict) else None


def _first_line(path: Path) -> str:
    """Read the first line, up to the longest line that a batch accepts."""
    try:
        with path.open("rb") as handle:
            line = handle.readline(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
    if len(line.rstrip(b"\n")) > MAX_LINE_BYTES:
        raise CliError(f"{path}, line 1 has more than {MAX_LINE_BYTES} bytes; name the endpoint with --endpoint")
    if not line.strip():
        raise CliError(f"{path} is empty or begins with an empty line")
    return line.decode("utf-8-sig", errors="replace")


def parse_pairs(pairs: list[str]) -> dict[str, str]:
    """Return the pairs `name=value` as a mapping. Raises: CliError."""
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CliError(f"'{pair}' is no pair; write it as name=value")
        values[name] = value
    return values


def parse_time(text: str) -> int:
    """Return a time in unix seconds. A time without an offset is local time."""
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise CliError(f"'{text}' is no time; write it as 2026-12-24T18:00 or 2026-12-24T18:00+01:00") from None


def output_paths(source: Path, output: Path | None, *, table: bool = False) -> tuple[Path, Path]:
    """Return the files for answers and errors. With answers on standard output, errors go to standard error.

    The answers of a table are one, with the errors in a column.
    """
    answers = output or source.with_name(f"{source.stem}.output.{'csv' if table else 'jsonl'}")
    if answers == Path("/dev/stdout"):
        return answers, Path("/dev/stderr")
    return answers, answers.with_name(f"{answers.name.removesuffix('.jsonl')}.errors.jsonl")
