"""Tables of results: the columns of the rows that were submitted, beside the fields of the answers."""

import csv
import io
import json
from typing import Any

import pytest
from pyarrow import parquet

from jobs.batches import exports
from jobs.batches.joining import Row, join_rows
from jobs.batches.tabulation import has_cells, tabulate

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
PROPERTIES = {
    "capital": {"type": "string"},
    "population": {"type": "integer"},
    "area": {"type": "number"},
    "island": {"type": "boolean"},
    "continent": {"enum": ["Asia", "Europe"]},
}


def schema_of(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"name": "row", "strict": True, "schema": {"type": "object", "properties": properties}}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def rows_of(*answers: str | None, row: Any = None, url: str = CHAT, **body: Any) -> list[Row]:
    """Return the joined rows of requests made of the same row; an answer of None is a failure."""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    errors: list[bytes] = []
    for n, text in enumerate(answers):
        request = {"custom_id": f"row-{n}", "url": url, "body": {"model": "m", **body}}
        inputs.append(json.dumps(request | ({} if row is None else {"row": row})).encode() + b"\n")
        message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        response = {"status_code": 200, "body": message} if text is not None else None
        error = None if response else {"code": "engine_error", "message": "It broke."}
        line = json.dumps({"custom_id": f"row-{n}", "response": response, "error": error}).encode()
        (outputs if response else errors).append(line)
    return list(join_rows(inputs, outputs, errors))


def cells(rows: list[Row]) -> list[list[Any]]:
    kinds, flat = tabulate(rows)
    return [list(kinds), *([row[name] for name in kinds] for row in flat)]


def test_rows_are_joined_with_answer_fields() -> None:
    answer = {"capital": "Lima", "population": 10, "area": 1.5, "island": False, "continent": "Asia"}
    country = {"country": "Peru", "id": "7"}

    table = cells(rows_of(json.dumps(answer), None, "no JSON", row=country, **schema_of(PROPERTIES)))

    assert table == [
        ["country", "id", "capital", "population", "area", "island", "continent", "error"],
        ["Peru", "7", "Lima", 10, 1.5, False, "Asia", None],
        ["Peru", "7", None, None, None, None, None, "engine_error"],
        ["Peru", "7", None, None, None, None, None, "invalid_answer"],
    ]


def test_answer_without_schema_fills_single_column() -> None:
    assert cells(rows_of("Lima", row={"country": "Peru"})) == [["country", "answer", "error"], ["Peru", "Lima", None]]


def test_requests_that_were_made_of_no_table_are_named_by_their_ids() -> None:
    assert cells(rows_of("Lima", row=None)) == [["custom_id", "answer", "error"], ["row-0", "Lima", None]]
    assert cells(rows_of("Lima", row="odd")) == cells(rows_of("Lima"))
    assert cells([]) == [["custom_id", "answer", "error"]]


def test_conflicting_answer_columns_are_prefixed() -> None:
    row = {"label": "a", "error": "b"}

    table = cells(rows_of('{"label": "x"}', row=row, **schema_of({"label": {"type": "string"}})))

    assert table == [["label", "error", "answer.label", "answer.error"], ["a", "b", "x", None]]


def test_schema_of_a_response_has_columns_too() -> None:
    form = {"type": "json_schema", "name": "row", "schema": {"properties": {"capital": {"type": "string"}}}}

    (head, _) = cells(rows_of("{}", url=RESPONSES, text={"format": form}))

    assert head == ["custom_id", "capital", "error"]


@pytest.mark.parametrize(
    "odd", [[], "x", {"schema": 3}, {"schema": {"properties": []}}, {"schema": {"properties": {}}}]
)
def test_odd_schema_has_no_columns(odd: Any) -> None:
    body = {"response_format": {"type": "json_schema", "json_schema": odd}}

    assert cells(rows_of("Lima", **body))[0] == ["custom_id", "answer", "error"]


@pytest.mark.parametrize("answer", ["[" * 100_000, "[1]", "3", '"x"', "", "{"])
def test_non_object_answer_is_reported_as_invalid(answer: str) -> None:
    assert cells(rows_of(answer, **schema_of(PROPERTIES)))[1][-1] == "invalid_answer"


def test_exported_columns_are_typed_and_mismatched_values_are_null() -> None:
    answers = [
        {"capital": "=1+1", "population": 10, "area": 2, "island": True},
        {"capital": ["x"], "population": "many", "area": True, "island": 1},
        {"capital": 3, "population": 1 << 70, "area": 0.5},
    ]
    kinds, flat = tabulate(rows_of(*map(json.dumps, answers), row={"n": 7}, **schema_of(PROPERTIES)))
    rows = list(flat)

    table = parquet.read_table(io.BytesIO(b"".join(exports.parquet_pieces(rows, kinds))))
    lines = list(csv.DictReader(io.StringIO("".join(exports.csv_lines(rows, kinds)))))

    assert [str(field.type) for field in table.schema] == ["string"] * 2 + [
        "int64",
        "double",
        "bool",
        "string",
        "string",
    ]
    assert table["n"].to_pylist() == ["7"] * 3
    assert table["capital"].to_pylist() == ["=1+1", '["x"]', "3"]
    assert table["population"].to_pylist() == [10, None, None]
    assert table["area"].to_pylist() == [2.0, None, 0.5]
    assert table["island"].to_pylist() == [True, None, None]
    assert [line["capital"] for line in lines] == ["'=1+1", '["x"]', "3"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"capital": "Lima"}, True),
        ({"country": "Peru", "island": "false", "population": "10"}, True),
        ({"capital": "Quito"}, False),
        ({"country": "Peru", "capital": "lima"}, False),
        ({"no such column": "Lima"}, False),
        ({"error": ""}, True),
    ],
)
def test_row_is_selected_by_the_texts_of_its_cells(texts: dict[str, str], expected: bool) -> None:
    answer = {"capital": "Lima", "population": 10, "area": 1.5, "island": False, "continent": "Asia"}
    [row] = rows_of(json.dumps(answer), row={"country": "Peru"}, **schema_of(PROPERTIES))

    assert has_cells(row, texts) is expected
