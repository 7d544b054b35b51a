"""Rows of `cli.joining` as JSON lines, CSV or Parquet. A few rows are held at a time."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

from cli.joining import COLUMNS, Row
from cli.terminal import Screen, text_output
from cli.trouble import Trouble
from cli.wholefile import whole

_AT_ONCE = 1000  # rows of a Parquet row group
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
Writer = Callable[[Iterable[Row], Path | None], int]


def write_jsonl(rows: Iterable[Row], path: Path | None) -> int:
    """One object a line, request and response whole. Returns how many."""
    count = 0
    with _text(path) as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_csv(rows: Iterable[Row], path: Path | None) -> int:
    """RFC 4180, with a header; what is no plain value is JSON in its cell, null an empty one, as an empty text is.

    A text that a spreadsheet would run as a formula gets a leading `'`.
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
    """Columns as in CSV; of `vectors` the answers are lists of 32-bit floats, however many rows have none."""
    import pyarrow as pa
    from pyarrow import parquet

    if path is None:
        raise Trouble("a Parquet file needs a place: name it with --output")
    rows, count, schema = iter(rows), 0, _schema(pa, vectors=vectors)
    with whole(path) as out, parquet.ParquetWriter(out, schema) as writer:
        while page := list(islice(rows, _AT_ONCE)):
            flat = [{**row, "request": _cell(row["request"]), "response": _cell(row["response"])} for row in page]
            writer.write_table(pa.Table.from_pylist(flat, schema=schema))
            count += len(page)
    return count


def writer_of(format_: str, *, vectors: bool) -> Writer:
    """What writes rows as `jsonl`, `csv` or `parquet`. `vectors`: the answers are embeddings."""
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
    """Return `value` so that no spreadsheet runs it: as OWASP's "CSV Injection" advises. Numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


@contextmanager
def _text(path: Path | None) -> Iterator[TextIO | Screen]:
    """Standard output, or a file that appears when it is whole."""
    if path is None:
        yield text_output()
        return
    with whole(path) as out, io.TextIOWrapper(out, encoding="utf-8", newline="") as text:
        yield text
