"""Rows of a table become requests: the prompt is filled, and the schema names the columns of the answers."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.client.tables import Template, parse_schema, requests_of
from cli.errors import CliError
from cli.main import app

TEMPLATE = Template("m", "Name the capital of {{ country }}.")


def lines_of(tmp_path: Path, content: bytes, template: Template = TEMPLATE) -> list[dict[str, Any]]:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    with requests_of(table, template) as path:
        assert path.name == "table.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_becomes_a_request_that_holds_it(tmp_path: Path) -> None:
    schema = parse_schema("capital")
    template = Template("m", "Of {{country}}: {{id}}", "Be brief, {{id}}.", schema, 0.5, 9, id_column="id")

    [line, other] = lines_of(tmp_path, b"country,id\n{{id}},7\nPeru,\n", template)

    assert line == {
        "custom_id": "7",
        "row": {"country": "{{id}}", "id": "7"},
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief, 7."},
                {"role": "user", "content": "Of {{id}}: 7"},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "row", "strict": True, "schema": schema},
            },
            "temperature": 0.5,
            "max_completion_tokens": 9,
        },
    }
    assert other["custom_id"] == "row-2"


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbfcountry\r\nPeru\r\n\r\n", [{"country": "Peru"}]),
        (b"country;size\nPeru;1,5\n", [{"country": "Peru", "size": "1,5"}]),
        (b"country\tsize\nPeru\tbig", [{"country": "Peru", "size": "big"}]),
        (b'"a,b";country\n"x\n""y""";Peru\n', [{"a,b": 'x\n"y"', "country": "Peru"}]),
        (b"country,size,note\nPeru\nChad,1,2,3\n", [{"country": "Peru", "size": "", "note": ""},
                                                   {"country": "Chad", "size": "1", "note": "2"}]),
        (b"country,country\nPeru,Chad\n", [{"country": "Peru"}]),
        (b" country \nZo\xc3\xab\n", [{"country": "Zo\u00eb"}]),
    ],
)  # fmt: skip
def test_tables_are_read_in_spreadsheet_formats(tmp_path: Path, content: bytes, rows: Any) -> None:
    lines = lines_of(tmp_path, content)

    assert [line["row"] for line in lines] == rows
    assert [list(line["row"]) for line in lines] == [list(row) for row in rows]


@pytest.mark.parametrize(
    ("content", "template", "told"),
    [
        (b"town\nLima\n", TEMPLATE, "has no column 'country'; it has: town"),
        (b"country\nPeru\n", Template("m", "{{country}}", id_column="id"), "has no column 'id'"),
        (b"country\nPeru\n", Template("m", "Hello"), "names no column"),
        (b"", TEMPLATE, "it has: none"),
        (b"country\n", TEMPLATE, "no row below"),
        (b"country\n\xff\n", TEMPLATE, "not stored as UTF-8"),
        (b'country\n"' + b"x" * 10_000_001, TEMPLATE, "is no table: field larger"),
    ],
)
def test_table_without_usable_requests_is_refused(
    tmp_path: Path, content: bytes, template: Template, told: str
) -> None:
    with pytest.raises(CliError, match=told):
        lines_of(tmp_path, content, template)


def test_schema_is_written_as_columns_or_read_from_a_file(tmp_path: Path) -> None:
    schema = parse_schema("the capital, people:integer, size: small | large")
    (tmp_path / "schema.json").write_text(json.dumps(schema))

    assert schema["properties"] == {
        "the capital": {"type": "string"},
        "people": {"type": "integer"},
        "size": {"type": "string", "enum": ["small", "large"]},
    }
    assert (schema["required"], schema["additionalProperties"]) == (list(schema["properties"]), False)
    assert parse_schema(str(tmp_path / "schema.json")) == schema


@pytest.mark.parametrize("text", ["a:text", "a,a", "a,,b", ":integer", "a:x|", "a:integer:b", "none.json"])
def test_invalid_schema_is_refused(text: str) -> None:
    with pytest.raises(CliError, match=r"is no column of its own|cannot read none\.json"):
        parse_schema(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["t.csv"], "is a table: say with --prompt"),
        (["t.csv", "--prompt", "{{a}}"], "needs a --model"),
        (["t.csv", "--prompt", "{{a}}", "--model", "m", "--endpoint", "/v1/embeddings"], "--endpoint means nothing"),
        (["t.jsonl", "--schema", "a"], "need a --prompt"),
    ],
)
def test_options_of_a_table_stand_together(options: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["submit", *options])

    assert isinstance(done.exception, CliError)
    assert told in str(done.exception)


class Server:
    """A server on which every batch succeeds at once."""

    def __init__(self) -> None:
        self.uploaded: list[bytes] = []
        self.fetched: list[str] = []

    def upload(self, path: Path) -> str:
        self.uploaded.append(path.read_bytes())
        return "file-in"

    def post(self, path: str, body: Any) -> dict[str, Any]:
        if path == "/batches/validate":
            estimate = {"input_tokens": 1}
            return {"valid": True, "estimate": estimate, "eta_seconds": None, "requests": 1, "model": body["endpoint"]}
        return {"id": "batch_1", **body}

    def get(self, path: str) -> dict[str, Any]:
        return {
            "id": "batch_1", "kind": "generation", "state": "succeeded", "created_at": 0, "output_file_id": "file-out",
            "progress": {"total": 1, "completed": 1, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip

    def fetch(self, route: str, path: Path) -> None:
        self.fetched.append(route)
        path.write_text("country,capital,error\n")


@pytest.mark.parametrize(("output", "format_"), [(None, "csv"), ("out.parquet", "parquet"), ("out.jsonl", "jsonl")])
def test_table_is_submitted_and_results_are_written_as_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None, format_: str
) -> None:
    (tmp_path / "table.csv").write_text("country\nPeru\n")
    server = Server()
    monkeypatch.setattr("cli.options.connect", lambda *_: nullcontext(server))
    options = ["--prompt", "{{country}}?", "--model", "m", "--schema", "capital"]
    options += ["--output", str(tmp_path / output)] if output else []

    done = CliRunner().invoke(app, ["submit", str(tmp_path / "table.csv"), *options])

    assert done.exit_code == 0, done.output
    [line] = map(json.loads, server.uploaded[0].splitlines())
    assert (line["row"], line["body"]["messages"][0]["content"]) == ({"country": "Peru"}, "Peru?")
    assert server.fetched == [f"/jobs/batch_1/results?format={format_}&join=true&table=true"]
    assert (tmp_path / (output or "table.output.csv")).read_text() == "country,capital,error\n"
