"""Make the requests of a batch from a table: each row fills a prompt, and a schema names the columns of the answers.

country,id          "Name the capital of {{country}}."          {"custom_id": "row-1", "row": {"country": "Peru", …}, …}
Peru,7         +    capital, population:integer           ──▶   a chat completion whose answer follows the schema
"""

import csv
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.errors import CliError
from jobs.requests.endpoints import CHAT

SUFFIXES: Final = (".csv", ".tsv")
_DELIMITERS: Final = (",", ";", "\t", "|")
_PLACEHOLDER: Final = re.compile(r"\{\{([^{}]*)\}\}")
_QUOTED: Final = re.compile(r'"[^"]*"')
_TYPES: Final = ("string", "integer", "number", "boolean")
#: Characters of a field at most: a quote without its end would make one of the rest of the file.
_MAX_FIELD: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Template:
    """The settings by which a row becomes a request; `{{column}}` in the texts stands for the value of the row.

    `schema` is the JSON schema of the answers, None for plain text. `id_column` holds the `custom_id`; without it that
    is `row-1`, `row-2` and so on.
    """

    model: str
    prompt: str
    system: str = ""
    schema: Mapping[str, Any] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    id_column: str = ""

    def line(self, number: int, row: Mapping[str, str]) -> dict[str, Any]:
        """Return the line of a row, counted from 1."""
        messages = [("system", self.system), ("user", self.prompt)]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": fill(text, row)} for role, text in messages if text],
        }
        if self.schema is not None:
            schema = {"name": "row", "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        limits = {"temperature": self.temperature, "max_completion_tokens": self.max_tokens}
        body |= {name: value for name, value in limits.items() if value is not None}
        custom_id = row.get(self.id_column) or f"row-{number}"
        return {"custom_id": custom_id, "row": row, "method": "POST", "url": CHAT, "body": body}


def fill(text: str, row: Mapping[str, str]) -> str:
    """Return a text with the values of a row in the places of its columns. Values are not filled again."""
    return _PLACEHOLDER.sub(lambda match: row.get(match[1].strip(), ""), text)


def parse_schema(text: str) -> dict[str, Any]:
    """Return the JSON schema of a file, or of columns such as `capital, population:integer, size:small|large`.

    Raises: CliError.
    """
    if text.endswith(".json"):
        return _read_schema(Path(text))
    properties: dict[str, Any] = {}
    for column in text.split(","):
        name, _, kind = (part.strip() for part in column.partition(":"))
        choices = [choice.strip() for choice in kind.split("|")] if "|" in kind else []
        if not name or name in properties or (kind and not choices and kind not in _TYPES) or "" in choices:
            example = "capital, population:integer, size:small|large"
            raise CliError(f"--schema: '{column.strip()}' is no column of its own; write a .json file, or {example}")
        properties[name] = {"type": "string", "enum": choices} if choices else {"type": kind or "string"}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_bytes())
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CliError(f"{path} is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise CliError(f"{path} is no JSON schema: it must be an object")
    return schema


@contextmanager
def requests_of(table: Path, template: Template) -> Iterator[Path]:
    """Yield the path of a temporary file with the request of each row. Raises: CliError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{table.stem}.jsonl"
        with path.open("w", encoding="utf-8") as out:
            for number, row in enumerate(read_table(table, template), 1):
                out.write(json.dumps(template.line(number, row), ensure_ascii=False) + "\n")
        yield path


def read_table(table: Path, template: Template) -> Iterator[dict[str, str]]:
    """Yield the rows of a table. Of columns with the same name the first counts; a field that is missing is empty.

    Raises:
        CliError: the table cannot be read or has no rows, or the template names no column, or one that is not there.
    """
    csv.field_size_limit(_MAX_FIELD)
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            rows = filter(None, csv.reader(lines, delimiter=_delimiter(first)))
            columns = [name.strip() for name in next(rows, [])]
            _check(table, columns, template)
            if (row := next(rows, None)) is None:
                raise CliError(f"{table} has no row below its first line")
            for each in itertools.chain([row], rows):
                yield _cells(columns, each)
    except OSError as error:
        raise CliError(f"cannot read {table}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise CliError(f"{table} is not stored as UTF-8: save it as UTF-8 first") from None
    except csv.Error as error:
        raise CliError(f"{table} is no table: {error}") from error


def _cells(columns: list[str], row: list[str]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for column, value in itertools.zip_longest(columns, row[: len(columns)], fillvalue=""):
        cells.setdefault(column, value)
    return cells


def _delimiter(first: str) -> str:
    """Return the delimiter that stands most often in the first line, quoted fields left out."""
    plain = _QUOTED.sub("", first)
    return max(_DELIMITERS, key=plain.count)


def _check(table: Path, columns: list[str], template: Template) -> None:
    named = [name.strip() for name in _PLACEHOLDER.findall(f"{template.system} {template.prompt}")]
    if not named:
        raise CliError("the prompt names no column, so that every request would be the same: write {{column}}")
    for name in (*named, *filter(None, [template.id_column])):
        if name not in columns:
            raise CliError(f"{table} has no column '{name}'; it has: {', '.join(columns) or 'none'}")
