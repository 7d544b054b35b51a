"""Show joined rows as a table: the columns of the rows that requests were made of, beside the fields of their answers.

    line      {"custom_id": "row-1", "row": {"country": "Peru"}, "body": {…, "response_format": {…}}}
    answer    {"capital": "Lima", "population": 10}
    table     country, capital, population, error

The first row decides the columns: its `row`, or its `custom_id` where it has none, and the properties of the JSON
schema that its answer follows. Without a schema the answer is one column, `answer`. A column whose name is taken gets
`answer.` before it. `error` is the code of a line that failed, or `invalid_answer` where the answer is no JSON object.
"""

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from jobs.batches.joining import Row

Kind = Literal["string", "integer", "number", "boolean", "vector"]

_INVALID: Final = "invalid_answer"
_INT64: Final = 1 << 63


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64


#: Whether a value can stand in a column of a kind. A column of strings takes every value, which may become JSON.
_FITS: Final[Mapping[Kind, Callable[[Any], bool]]] = {
    "integer": _is_integer,
    "number": lambda value: isinstance(value, float) or _is_integer(value),
    "boolean": lambda value: isinstance(value, bool),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table.

    `inputs` are the names of those of the input. `fields` are the fields of the answers by the names of their columns;
    without any, the whole answer is one column. `kinds` are the kinds of all columns by their names, in their order.
    """

    inputs: tuple[str, ...]
    fields: Mapping[str, str]
    kinds: Mapping[str, Kind]

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return the columns that a joined row decides."""
        inputs = tuple(_input_of(row))
        kinds: dict[str, Kind] = dict.fromkeys(inputs, "string")
        fields: dict[str, str] = {}
        for field, kind in _properties(row["request"]):
            name = _free(field, kinds)
            fields[name], kinds[name] = field, kind
        if not fields:
            kinds[_free("answer", kinds)] = "vector" if isinstance(row["answer"], list) else "string"
        kinds[_free("error", kinds)] = "string"
        return cls(inputs, fields, kinds)

    def flatten(self, row: Row) -> Row:
        """Return the cells of a joined row. A value that does not fit the kind of its column is null."""
        given, error = _input_of(row), row["error_code"]
        *_, before, last = self.kinds
        cells = {name: _cell(given.get(name), "string") for name in self.inputs}
        if not self.fields:
            return cells | {before: row["answer"], last: error}
        values = _object(row["answer"])
        if values is None and error is None:
            error = _INVALID
        for name, field in self.fields.items():
            cells[name] = _cell((values or {}).get(field), self.kinds[name])
        return cells | {last: error}


def tabulate(rows: Iterable[Row]) -> tuple[Mapping[str, Kind], Iterator[Row]]:
    """Return the kinds of the columns by their names, and the cells of each joined row. One row is read ahead."""
    source = iter(rows)
    first = next(source, None)
    if first is None:
        return {"custom_id": "string", "answer": "string", "error": "string"}, source
    columns = Columns.of(first)
    return columns.kinds, map(columns.flatten, itertools.chain([first], source))


def has_cells(row: Row, texts: Mapping[str, str]) -> bool:
    """Return whether a joined row has these texts in the columns of its table, by their names."""
    cells = Columns.of(row).flatten(row)
    return all(name in cells and _text(cells[name]) == text for name, text in texts.items())


def _text(cell: Any) -> str:
    """Return what a cell looks like: a null is empty, and what is no string is JSON."""
    return "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


def _input_of(row: Row) -> Row:
    return row.get("row") or {"custom_id": row["custom_id"]}


def _cell(value: Any, kind: Kind) -> Any:
    if kind == "string":
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if _FITS[kind](value) else None


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name = f"answer.{name}"
    return name


def _properties(body: Row) -> Iterator[tuple[str, Kind]]:
    """Yield the properties of the schema of a request's answer, of a chat or of a response."""
    wrapper = _at(body, "response_format", "json_schema") or _at(body, "text", "format")
    properties = _at(wrapper, "schema", "properties")
    for name in properties if isinstance(properties, dict) else ():
        kind = _at(properties, name, "type")
        yield name, kind if kind in ("integer", "number", "boolean") else "string"


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _object(answer: Any) -> dict[str, Any] | None:
    """Return the object that an answer holds as JSON; None where it holds none."""
    try:
        value = json.loads(answer) if isinstance(answer, str) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
