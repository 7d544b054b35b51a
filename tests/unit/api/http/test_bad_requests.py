"""Whatever is sent, the answer is a 4xx in OpenAI's shape, with a code that a program can read."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

from api.http import bodies
from tests.support.web import make_key
from tests.unit.api.calls import BODIES, project_routes
from tests.unit.api.conftest import client_of

DEEP = b"[" * 200_000
TEXTS = {
    "deep array": DEEP,
    "deep object": b'{"metadata":' * 5_000,
    "closed deep object": b'{"metadata":' * 500 + b"1" + b"}" * 500,
    "empty array": b"[]",
    "string": b'"text"',
    "null": b"null",
    "number": b"1",
    "empty": b"",
    "cut": b'{"input_file_id": "file-x"',
    "two": b"{}{}",
    "NaN": b'{"priority": NaN}',
    "Infinity": b'{"priority": -Infinity}',
    "5,000 digits": b'{"priority": ' + b"9" * 5_000 + b"}",
    "beyond doubles": b'{"priority": 1e999}',
    "lone surrogate": b'{"input_file_id": "\\ud800"}',
    "NUL": b'{"input_file_id": "a\\u0000b"}',
    "NUL far down": b'{"input_file_id": [' + b"[]," * 30_000 + b'"a\\u0000b"]}',
    "deep and large": b'["' + b"x" * 100_000 + b'", ' + b"[" * 200 + b"]" * 200 + b"]",
    "NUL in a name": b'{"a\\u0000b": 1}',
    "raw control character": b'{"input_file_id": "a\x01b"}',
    "invalid UTF-8": b'{"input_file_id": "\xff\xfe"}',
    "UTF-16": '{"input_file_id": "x"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"input_file_id": "x"}',
    "the same name twice": b'{"input_file_id": "a", "input_file_id": "b"}',
    "unknown field": b'{"frobnicate": 1}',
    "comment": b"{} // text",
}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def app(shared_app: FastAPI) -> FastAPI:
    return shared_app


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    return client_of(app, make_key(app))


def assert_refused(answer: Any, *statuses: int) -> dict[str, Any]:
    error = answer.json()["error"]
    assert answer.status_code in (statuses or range(400, 500))
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["code"], str)
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.verify] if name == "NUL far down" else []) for name in TEXTS]
)
def test_a_body_that_is_no_good_json_is_refused_by_every_route(app: FastAPI, client: TestClient, name: str) -> None:
    takes_json = [route for route in project_routes(app) if "json" in BODIES.get((route.method, route.path), {})]
    assert len(takes_json) >= 8

    for route in takes_json:
        answer = client.request(
            route.method, route.path.replace("{", "").replace("}", ""), content=TEXTS[name], headers=JSON
        )

        assert_refused(answer, 400)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint", "invalid_value"),
        ({"endpoint": None}, "endpoint", "invalid_value"),
        ({"completion_window": "25x"}, "completion_window", "invalid_value"),
        ({"completion_window": "0h"}, "completion_window", "invalid_value"),
        ({"completion_window": "1m0s"}, "completion_window", "invalid_value"),
        ({"completion_window": "400d"}, "completion_window", "invalid_value"),
        ({"completion_window": "²4h"}, "completion_window", "invalid_value"),
        ({"completion_window": 24}, "completion_window", "invalid_type"),
        ({"input_file_id": 3}, "input_file_id", "invalid_type"),
        ({"input_file_id": ""}, "input_file_id", "string_below_min_length"),
        ({"input_file_id": "f" * 193}, "input_file_id", "string_above_max_length"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65, "string_above_max_length"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "object_above_max_properties"),
        ({"priority": 101}, "priority", "integer_above_max_value"),
        ({"priority": -101}, "priority", "integer_below_min_value"),
        ({"priority": 10**30}, "priority", "integer_above_max_value"),
        ({"priority": "1"}, "priority", "invalid_type"),
        ({"priority": 1.5}, "priority", "invalid_type"),
        ({"dedupe": "yes"}, "dedupe", "invalid_type"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor", "invalid_value"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "output_expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at"}},
            "output_expires_after.seconds",
            "missing_required_parameter",
        ),
        ({"webhook": {"url": "http://example.com"}}, "webhook.url", "invalid_url"),
        ({"webhook": {"url": "https://127.0.0.1/x"}}, "webhook.url", "invalid_url"),
        ({"webhook": {"url": "https://192.0.43.8/x", "secret": "s"}}, "webhook.secret", "invalid_value"),
        ({"webhook": "https://example.com"}, "webhook", "invalid_type"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
    ],
)
def test_batch_error_names_invalid_field(client: TestClient, change: dict[str, Any], param: str, code: str) -> None:
    good = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}

    answer = client.post("/v1/batches", json=good | change)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert client.get("/v1/batches").json()["data"] == []


_TURNS = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("context", "param", "code"),
    [
        ("rotate", "context", "invalid_value"),
        ({}, "context.strategy", "missing_required_parameter"),
        ({"strategy": "forget"}, "context.strategy", "invalid_value"),
        ({"strategy": "rotate", "keep_last": 0}, "context.keep_last", "invalid_value"),
        ({"strategy": "rotate", "keep": 1}, "context.keep", "unknown_parameter"),
    ],
)
def test_context_options_are_checked_before_a_worker_exists(
    client: TestClient, context: Any, param: str, code: str
) -> None:
    bodies = {"/v1/chat/completions": {"messages": _TURNS}, "/v1/responses": {"input": _TURNS}}
    asked = [*bodies.items(), ("/v1/responses", {"input": "Hi", "background": True})]

    for path, fields in asked:
        answer = client.post(path, json={"model": "smollm2-135m-instruct", "context": context, **fields})
        error = assert_refused(answer, 400)
        assert (error["param"], error["code"]) == (param, code)
    assert client.get("/v1/jobs").json()["data"] == []


def test_valid_context_options_are_passed_on(client: TestClient) -> None:
    body = {"model": "smollm2-135m-instruct", "messages": [{**_TURNS[0], "priority": 1.5}]}

    for context in (None, {"strategy": "priority", "keep_last": 2}, {"route_long": "other"}):
        assert_refused(client.post("/v1/chat/completions", json=body | {"context": context}), 503)
    completion = {"model": "smollm2-135m-instruct", "prompt": "Hi", "context": {"strategy": "rotate"}}
    error = assert_refused(client.post("/v1/completions", json=completion), 400)
    assert (error["param"], error["code"]) == ("context", "unsupported_parameter")


def test_validation_reports_bounded_number_of_errors(app: FastAPI) -> None:
    names = {f"x{n}": [] for n in range(20_000)}
    counts: dict[str, int] = {}
    for route in app.routes:
        model = isinstance(route, APIRoute) and route.body_field and route.body_field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        for field in model.model_fields:
            for change in (names, {field: names}, {field: [0.5] * len(names)}):
                try:
                    model.model_validate(change)
                except ValidationError as error:
                    counts[f"{route.path} {field} {next(iter(change))}"] = error.error_count()

    assert len(counts) > 100
    assert {case: count for case, count in counts.items() if count > 40} == {}


def test_a_missing_field_is_named_as_openai_names_it(client: TestClient) -> None:
    error = client.post("/v1/batches", json={"endpoint": "/v1/embeddings"}).json()["error"]

    assert error == {
        "message": "Missing required parameter: 'input_file_id'.",
        "type": "invalid_request_error",
        "param": "input_file_id",
        "code": "missing_required_parameter",
    }


def test_wrong_type_error_has_openai_wording(client: TestClient) -> None:
    body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h", "metadata": {"tags": []}}

    error = client.post("/v1/batches", json=body).json()["error"]

    assert error["message"] == "Invalid type for 'metadata.tags': expected a string, but got an array instead."


def test_unsupported_endpoint_error_lists_supported_endpoints(client: TestClient) -> None:
    body = {"input_file_id": "f", "endpoint": "/v1/videos", "completion_window": "24h"}

    message = client.post("/v1/batches", json=body).json()["error"]["message"]

    assert message.startswith("Invalid value: '/v1/videos'. Supported values are: '/v1/responses', ")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/jobs", "/v1/webhook_endpoints"])
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"limit": "0"}, "integer_below_min_value"),
        ({"limit": "1000000000"}, "integer_above_max_value"),
        ({"limit": "-1"}, "integer_below_min_value"),
        ({"limit": "ten"}, "invalid_type"),
        ({"limit": "9" * 5000}, None),
        ({"after": "file-unknown"}, "invalid_cursor"),
        ({"after": "x" * 1000}, "string_above_max_length"),
        ({"after": "'; drop table job; --"}, "invalid_cursor"),
    ],
)
def test_a_list_refuses_limits_and_cursors_that_mean_nothing(
    client: TestClient, path: str, query: dict[str, str], code: str | None
) -> None:
    error = assert_refused(client.get(path, params=query), 400)

    assert error["param"] == next(iter(query))
    assert code in (None, error["code"])


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/chat/completions"])
def test_more_labels_than_there_can_be_are_not_looked_for(client: TestClient, path: str) -> None:
    wanted = {f"metadata[{n}]": "x" for n in range(1100)}

    assert assert_refused(client.get(path, params=wanted), 400)["param"] == "metadata"
    assert client.get(path, params=dict(list(wanted.items())[:16])).status_code == 200


@pytest.mark.parametrize("query", ["order=sideways", "state=asleep", "idempotency_key="])
def test_a_filter_that_is_no_value_is_refused(client: TestClient, query: str) -> None:
    assert_refused(client.get(f"/v1/jobs?{query}"), 400)


@pytest.mark.parametrize(
    "path", ["/v1/files/a%00b", "/v1/files?purpose=%00", "/v1/jobs?metadata[a]=%00", "/v1/models/%00"]
)
def test_a_nul_character_in_the_url_is_refused(client: TestClient, path: str) -> None:
    assert assert_refused(client.get(path), 400)["code"] == "invalid_url"


@pytest.mark.parametrize(
    "path", ["/v1/files/..%2f..%2fetc%2fpasswd", "/v1/files/" + "x" * 3000, "/v1/batches/%F0%9F%92%A9"]
)
def test_an_odd_id_is_only_unknown(client: TestClient, path: str) -> None:
    assert_refused(client.get(path), 404)


@pytest.mark.parametrize(
    "path",
    ["moderations", "images/generations", "assistants", "threads/thread_1/messages", "audio/speech", "realtime/calls"],
)
def test_unsupported_openai_resource_error_lists_supported_resources(client: TestClient, path: str) -> None:
    for answer in (client.post(f"/v1/{path}", json={"input": "x"}), client.get(f"/v1/{path}/x")):
        error = assert_refused(answer, 404)

        assert error["code"] == "unknown_url"
        told, _, served = error["message"].partition(" Supported are: ")
        assert told == f"/v1/{path.partition('/')[0]} is not supported by Nightmill."
        names = served.rstrip(".").split(", ")
        assert {"batches", "chat/completions", "files", "responses", "vector_stores", "models"} <= set(names)
        assert not any("{" in name or name == "batches/validate" for name in names)


def test_another_unknown_url_of_a_resource_that_is_served_is_invalid(client: TestClient) -> None:
    for path in ("/v1/files/", "/v1/chat/nothing", "/v1/batches/batch_1/nothing", "/nothing"):
        assert assert_refused(client.get(path), 404)["message"] == f"Invalid URL (GET {path})"
    assert len(assert_refused(client.get(f"/v1/{'x' * 5000}"), 404)["message"]) < 1000


def test_unknown_urls_and_methods_return_openai_error_shape(client: TestClient) -> None:
    assert assert_refused(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert assert_refused(client.get("/v1/files/"), 404)["code"] == "unknown_url"
    answer = client.put("/v1/files", json={})
    assert assert_refused(answer, 405)["code"] == "method_not_allowed"
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "nonsense"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br, gzip"},
    ],
)
def test_a_body_of_another_kind_is_415(client: TestClient, headers: dict[str, str]) -> None:
    assert_refused(client.post("/v1/batches", content=b"{}", headers=headers), 415)


@pytest.mark.parametrize("path", ["images/edits", "audio/transcriptions", "videos", "containers/c/files", "odd"])
def test_form_to_unknown_url_returns_404(client: TestClient, path: str) -> None:
    said = client.post(f"/v1/{path}", files={"file": ("a.png", b"x")}, data={"model": "m"})

    assert assert_refused(said, 404)["code"] == "unknown_url"


def test_form_to_read_only_url_returns_405(client: TestClient) -> None:
    assert_refused(client.post("/v1/models", files={"file": ("a", b"x")}), 405)


def test_a_form_where_json_is_wanted_and_the_reverse_are_415(client: TestClient) -> None:
    assert_refused(client.post("/v1/files", json={"purpose": "batch"}), 415)


def test_a_body_beyond_the_limit_is_413_by_its_length(client: TestClient) -> None:
    text = json.dumps({"input_file_id": "x" * (5 << 20)})

    assert_refused(client.post("/v1/batches", content=text, headers=JSON), 413)


def test_a_body_beyond_the_limit_is_413_by_counting(client: TestClient) -> None:
    pieces = (b" " * (1 << 20) for _ in range(6))

    assert_refused(client.post("/v1/batches", content=pieces, headers=JSON), 413)


def test_a_content_length_that_is_no_number_is_refused(client: TestClient) -> None:
    for length in ("-1", "1e3", "0x10"):
        answer = client.post("/v1/batches", content=b"{}", headers={**JSON, "Content-Length": length})
        assert_refused(answer, 400)


def test_large_body_is_parsed_outside_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, looping = bodies.parse, list[bool]()

    def note(raw: bytes) -> Any:
        looping.append(asyncio._get_running_loop() is not None)
        return parse(raw)

    monkeypatch.setattr(bodies, "parse", note)
    for size in (10, 100_000):
        client.post("/v1/batches", json={"input_file_id": "x" * size})

    assert looping == [True, False]
