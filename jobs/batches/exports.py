"""Write joined rows as JSON Lines, CSV or Parquet, piece by piece: memory does not grow with the number of rows."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from jobs.batches.joining import COLUMNS, Row
from jobs.batches.tabulation import Kind

Format = Literal["jsonl", "csv", "parquet"]

#: Rows of a Parquet row group, and characters of their text, at most.
_GROUP_ROWS: Final = 1000
_GROUP_CHARACTERS: Final = 8 << 20
_INTEGERS: Final = ("status_code", "input_tokens", "output_tokens")
#: The kinds of the columns of joined rows by their names; `VECTOR_KINDS` those of a batch of embeddings.
KINDS: Final[Mapping[str, Kind]] = {name: "integer" if name in _INTEGERS else "string" for name in COLUMNS}
VECTOR_KINDS: Final[Mapping[str, Kind]] = {**KINDS, "answer": "vector"}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield one JSON object a line with the whole request and response."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def csv_lines(rows: Iterable[Row], columns: Iterable[str] = COLUMNS) -> Iterator[str]:
    """Yield CSV (RFC 4180): the header, then the text of each row.

    Objects and lists are JSON in their cells. Null and empty text are empty cells. A text that a spreadsheet would run
    as a formula gets a leading `'`.
    """
    out, names = io.StringIO(newline=""), list(columns)
    writer = csv.writer(out)
    writer.writerow([_inert(name) for name in names])
    yield out.getvalue()
    for row in rows:
        out.seek(0)
        out.truncate()
        writer.writerow([_inert(_cell(row[name])) for name in names])
        yield out.getvalue()


def parquet_pieces(rows: Iterable[Row], kinds: Mapping[str, Kind] = KINDS) -> Iterator[bytes]:
    """Yield a Parquet file with columns of these kinds; vectors are lists of 32-bit floats."""
    import pyarrow as pa
    from pyarrow import parquet

    sink, schema = _Sink(), _schema(kinds)
    with parquet.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, write_statistics=False) as writer:
        for group in _groups(rows, kinds):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            yield sink.take()
    yield sink.take()


def _groups(rows: Iterable[Row], kinds: Mapping[str, Kind]) -> Iterator[list[Row]]:
    """Yield rows of plain cells in groups of bounded size."""
    group: list[Row] = []
    characters = 0
    for row in rows:
        flat = {name: _valid(_cell(row[name], keep=kind == "vector")) for name, kind in kinds.items()}
        characters += sum(len(value) for value in flat.values() if isinstance(value, str))
        group.append(flat)
        if len(group) == _GROUP_ROWS or characters > _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


class _Sink:
    """A file that is written only. It holds what was written since it was last emptied."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Do nothing: `take` empties the file."""

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        """Return what was written since the last call."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _schema(kinds: Mapping[str, Kind]) -> Any:
    import pyarrow as pa

    types = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "vector": pa.list_(pa.float32())}
    return pa.schema([(name, types.get(kind, pa.string())) for name, kind in kinds.items()])


def _cell(value: Any, *, keep: bool = False) -> Any:
    """Return an object or a list as JSON; `keep` keeps a list, which is a vector."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) and not keep else value


def _valid(value: Any) -> Any:
    """Return a text without surrogates that have no partner, which JSON allows and UTF-8 does not."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _inert(value: Any) -> Any:
    """Return `value` so that no spreadsheet runs it, as OWASP's "CSV Injection" advises. Numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
