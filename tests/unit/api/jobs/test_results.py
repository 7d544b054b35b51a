"""The results of an ended batch: pages of joined rows, tables, filters, and bad input."""

import csv
import io
import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pyarrow import parquet

from jobs.batches import joining
from jobs.batches.joining import COLUMNS
from jobs.ledger.tables import Job
from tests.support import worker_steps
from tests.unit.api.batches.test_batches import create

URL = "/v1/chat/completions"


def line(custom_id: str, text: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body}).encode() + b"\n"


def answer(custom_id: str, text: str) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"id": "x", "custom_id": custom_id, "response": response, "error": None}).encode()


def failure(custom_id: str, code: str) -> bytes:
    error = {"code": code, "message": "No."}
    return json.dumps({"id": "x", "custom_id": custom_id, "response": None, "error": error}).encode()


@pytest.fixture
def ended(app: FastAPI, client: TestClient) -> str:
    """Return an ended batch: `a` and `c` were answered, `b` failed, `d` was not run."""
    inputs = b"".join(line(name, f"hello {name}") for name in "abcd")
    sent = client.post("/v1/files", files={"file": ("a.jsonl", inputs)}, data={"purpose": "batch"}).json()
    job_id = create(client, sent["id"], endpoint=URL)["id"]
    answers = [answer("a", "=1+1"), answer("c", "ü")]
    worker_steps.end(app.state.services.db, app.state.services.storage, job_id, answers, [failure("b", "odd")])
    return str(job_id)


def get(client: TestClient, job_id: str, **query: Any) -> Any:
    return client.get(f"/v1/jobs/{job_id}/results", params=query)


def test_page_pairs_requests_with_results(client: TestClient, ended: str) -> None:
    page = get(client, ended, format="json").json()

    assert (page["object"], page["has_more"]) == ("list", False)
    assert [(row["custom_id"], row["prompt"], row["answer"], row["error_code"]) for row in page["data"]] == [
        ("a", "hello a", "=1+1", None), ("b", "hello b", None, "odd"), ("c", "hello c", "ü", None),
    ]  # fmt: skip
    assert set(page["data"][0]) == {"id", *COLUMNS}
    assert page["last_id"] == page["data"][-1]["id"]


def test_pages_go_on_after_a_row(client: TestClient, ended: str) -> None:
    first = get(client, ended, format="json", limit=2).json()
    second = get(client, ended, format="json", limit=2, after=first["last_id"]).json()

    assert [row["custom_id"] for row in first["data"] + second["data"]] == ["a", "b", "c"]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert get(client, ended, format="json", after=second["last_id"]).json()["data"] == []


def test_table_has_the_columns_that_were_submitted(app: FastAPI, client: TestClient) -> None:
    asked = [json.loads(line(name, "x")) | {"row": {"country": name}} for name in "ab"]
    inputs = "".join(json.dumps(each) + "\n" for each in asked)
    sent = client.post("/v1/files", files={"file": ("a.jsonl", inputs)}, data={"purpose": "batch"}).json()
    job_id = create(client, sent["id"], endpoint=URL)["id"]
    answers = [answer("a", "=1+1")], [failure("b", "odd")]
    worker_steps.end(app.state.services.db, app.state.services.storage, job_id, *answers)

    table = get(client, job_id, format="csv", table="true").text
    rows = get(client, job_id, join="true", table="true").text
    columns = parquet.read_table(io.BytesIO(get(client, job_id, format="parquet", table="true").content))

    assert list(csv.reader(io.StringIO(table))) == [
        ["country", "answer", "error"],
        ["a", "'=1+1", ""],
        ["b", "", "odd"],
    ]
    assert [json.loads(text) for text in rows.splitlines()] == columns.to_pylist()
    assert get(client, job_id, format="json").json()["data"][0]["row"] == {"country": "a"}
    for form in ({"format": "json"}, {"join": "true"}, {"format": "csv", "table": "true"}):
        selected = get(client, job_id, **form, **{"column[country]": "b"}).text
        assert ("odd" in selected, "1+1" in selected) == (True, False)
    assert get(client, job_id, **{"column[country]": "b"}).json()["error"]["param"] == "column"
    for query in ({"table": "true"}, {"table": "true", "format": "json"}):
        assert get(client, job_id, **query).json()["error"]["param"] == "table"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "succeeded"}, ["a", "c"]),
        ({"state": "failed"}, ["b"]),
        ({"code": "odd"}, ["b"]),
        ({"custom_id": "c"}, ["c"]),
        ({"custom_id": "d"}, []),
    ],
)
def test_rows_are_selected_in_every_format(
    client: TestClient, ended: str, query: dict[str, str], expected: list[str]
) -> None:
    page = get(client, ended, format="json", **query)
    lines = get(client, ended, join="true", **query)
    table = get(client, ended, format="csv", **query)

    assert [row["custom_id"] for row in page.json()["data"]] == expected
    assert [json.loads(text)["custom_id"] for text in lines.text.splitlines()] == expected
    assert [row["custom_id"] for row in csv.DictReader(io.StringIO(table.text, newline=""))] == expected


def test_tables_are_downloads_with_the_same_columns(client: TestClient, ended: str) -> None:
    table = get(client, ended, format="csv")
    columns = get(client, ended, format="parquet")

    [first, *_] = csv.DictReader(io.StringIO(table.text, newline=""))
    assert tuple(first) == COLUMNS
    assert first["answer"] == "'=1+1", "a spreadsheet does not run it"
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["content-disposition"] == f'attachment; filename="{ended}.csv"'
    read = parquet.read_table(io.BytesIO(columns.content))
    assert tuple(read.column_names) == COLUMNS
    assert read["answer"].to_pylist() == ["=1+1", None, "ü"]


def test_the_overrides_of_a_retry_are_in_its_requests(app: FastAPI, client: TestClient, ended: str) -> None:
    with app.state.services.db.write() as session:
        job = session.get_one(Job, ended)
        job.payload = {**job.payload, "overrides": {"temperature": 0}}

    [row, *_] = get(client, ended, format="json").json()["data"]

    assert row["request"]["temperature"] == 0


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"format": "xml"}, "format", "invalid_value"),
        ({"format": "json", "limit": "0"}, "limit", "integer_below_min_value"),
        ({"format": "json", "limit": "101"}, "limit", "integer_above_max_value"),
        ({"format": "json", "state": "odd"}, "state", "invalid_value"),
        ({"format": "json", "after": "x"}, "after", "invalid_cursor"),
        ({"format": "json", "after": "5-0-0"}, "after", "invalid_cursor"),
        ({"format": "json", "after": "0-0-999999"}, "after", "invalid_cursor"),
        ({"format": "json", "after": f"{'9' * 18}-0-0"}, "after", "invalid_cursor"),
        ({"format": "json", "after": f"0-{2**63 + 1}-0"}, "after", "invalid_cursor"),
        ({"format": "csv", "after": "0-0-0"}, "after", "invalid_value"),
        ({"state": "failed"}, "state", "invalid_value"),
        ({"code": "odd"}, "code", "invalid_value"),
        ({"custom_id": "a"}, "custom_id", "invalid_value"),
    ],
)
def test_bad_queries_are_refused(client: TestClient, ended: str, query: dict[str, str], param: str, code: str) -> None:
    refused = get(client, ended, **query)

    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_a_cursor_that_parts_a_request_from_its_result_is_refused(client: TestClient, ended: str) -> None:
    first = len(line("a", "hello a"))

    refused = get(client, ended, format="json", after=f"{first}-0-0")

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "results_unjoinable")


@pytest.mark.parametrize("format_", ["json", "csv", "parquet"])
def test_a_live_job_has_no_joined_rows(client: TestClient, format_: str) -> None:
    refused = get(client, create(client)["id"], format=format_)

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_state")


def test_the_input_and_the_results_have_to_be_there(app: FastAPI, client: TestClient, ended: str) -> None:
    job = client.get(f"/v1/jobs/{ended}").json()
    client.delete(f"/v1/files/{job['error_file_id']}")
    without_errors = get(client, ended, format="json")
    client.delete(f"/v1/files/{job['input_file_id']}")
    without_input = get(client, ended, format="csv")

    assert (without_errors.status_code, without_errors.json()["error"]["code"]) == (400, "results_expired")
    assert (without_input.status_code, without_input.json()["error"]["code"]) == (400, "input_file_gone")


def test_a_result_without_its_request_is_an_error_and_no_table(app: FastAPI, client: TestClient) -> None:
    services = app.state.services
    job_id = create(client)["id"]
    worker_steps.end(services.db, services.storage, job_id, [answer("stranger", "x")])

    refused = get(client, job_id, format="csv")

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "results_unjoinable")


def test_the_results_of_another_project_are_not_found(stranger: TestClient, ended: str) -> None:
    assert get(stranger, ended, format="json").status_code == 404


def test_a_page_is_bounded_by_its_bytes(client: TestClient, ended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PAGE_BYTES", 1)

    page = get(client, ended, format="json").json()

    assert ([row["custom_id"] for row in page["data"]], page["has_more"]) == (["a"], True)
