"""Bodies with many values: they are counted before anything walks them, and large ones are read in a thread."""

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi._compat import ModelField
from fastapi.testclient import TestClient

from api.http import bodies
from jobs.errors import InvalidRequest
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

JSON = {"Content-Type": "application/json"}
CHAT, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses"


@pytest.fixture(scope="module")
def app(shared_app: FastAPI) -> FastAPI:
    return shared_app


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    return client_of(app, make_key(app))


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, bool]]:
    """Return the type of each validated body, and whether the event loop validated it."""
    validate, seen = ModelField.validate, list[tuple[type, bool]]()

    def note(field: ModelField, value: Any, *args: Any, loc: tuple[Any, ...] = ()) -> Any:
        if loc == ("body",):
            seen.append((type(value), asyncio._get_running_loop() is not None))
        return validate(field, value, *args, loc=loc)

    monkeypatch.setattr(ModelField, "validate", note)
    return seen


def _many(fields: str, item: str, count: int) -> bytes:
    """Return the fields of a body, in which `*` stands for so many items."""
    return fields.replace("*", ",".join([item] * count)).encode()


@pytest.mark.parametrize("path", [RESPONSES, EMBEDDINGS, "/v1/responses/compact"])
@pytest.mark.parametrize("item", ["{}", '""', "[[]]"])
def test_too_many_values_are_refused_before_decoding(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, validated: list[Any], path: str, item: str
) -> None:
    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(bodies, "json", SimpleNamespace(loads=decode))  # the database decodes JSON too
    body = _many('{"model": "m", "x": "\\"y", "input": [*]}', item, 4_000_000 // (len(item) + 1))

    answer = client.post(path, content=body, headers=JSON)

    error = json.JSONDecoder().decode(answer.text)["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "input", "too_many_values")
    assert validated == []


@pytest.mark.parametrize(
    ("path", "param", "fields", "item", "count"),
    [
        (RESPONSES, "input", '{"model": "m", "input": [*]}', "{}", 10_001),
        (RESPONSES, "tools", '{"model": "m", "input": "x", "tools": [*]}', "{}", 10_001),
        ("/v1/responses/input_tokens", "input", '{"model": "m", "input": [*]}', "{}", 10_001),
        (CHAT, "messages", '{"model": "m", "messages": [*]}', "{}", 10_001),
        (CHAT, "messages[0].content", '{"model": "m", "messages": [{"content": [*]}]}', "{}", 10_001),
        (CHAT, "tools", '{"model": "m", "messages": [{}], "tools": [*]}', "{}", 129),
        (CHAT, "logit_bias", '{"model": "m", "messages": [{}], "logit_bias": {*}}', None, 10_001),
        (EMBEDDINGS, "input", '{"model": "m", "input": [*]}', '"x"', 2049),
        (EMBEDDINGS, "input", '{"model": "m", "input": [*]}', "[1]", 2049),
        ("/v1/rerank", "documents", '{"model": "m", "query": "x", "documents": [*]}', '"x"', 10_001),
        ("/v1/conversations", "items", '{"items": [*]}', "{}", 10_001),
        ("/v1/vector_stores", "file_ids", '{"file_ids": [*]}', '"x"', 10_001),
        ("/v1/vector_stores/vs_1/file_batches", "files", '{"files": [*]}', "{}", 10_001),
        ("/v1/vector_stores/vs_1/search", "query", '{"query": [*]}', '"x"', 10_001),
        ("/v1/uploads/upload_1/complete", "part_ids", '{"part_ids": [*]}', '"x"', 10_001),
    ],
)  # fmt: skip
def test_a_list_that_is_too_long_is_refused_before_it_is_validated(
    client: TestClient, validated: list[Any], path: str, param: str, fields: str, item: str | None, count: int
) -> None:
    members = fields.replace("*", ",".join(f'"{n}": 1' for n in range(count))).encode()
    body = members if item is None else _many(fields, item, count)

    answer = client.post(path, content=body, headers=JSON)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert error["message"].startswith(f"Invalid '{param}': ")
    assert f"Expected at most {count - 1} " in error["message"]
    assert validated == []


@pytest.mark.parametrize("tokens", [list(range(500_000)), [list(range(4000))] * 128])
def test_numbers_of_a_long_prompt_are_decoded(tokens: list[Any]) -> None:
    assert bodies.parse(json.dumps({"prompt": tokens}).encode()) == {"prompt": tokens}


@pytest.mark.parametrize(("item", "most"), [("{}", 80_000), ('"x"', 133_333), ("1", 600_000)])
def test_the_number_of_values_is_bounded_by_their_kind(item: str, most: int) -> None:
    bodies.parse(_many('{"a": [*]}', item, most - 20))

    with pytest.raises(InvalidRequest, match=f" {most} ") as refused:
        bodies.parse(_many('{"a": [*]}', item, most + 20))

    assert refused.value.code == "too_many_values"


def test_as_many_as_allowed_are_validated(client: TestClient) -> None:
    tokens = {"model": "nobody", "input": [list(range(300))] * 1000}
    texts = {"model": "nobody", "input": ["x"] * 2048}
    prompt = {"model": "nobody", "prompt": list(range(131_072))}
    messages = {"model": "nobody", "messages": [{"role": "user", "content": "x"}] * 10_000}
    files = {"file_ids": ["file-1"] * 10_000}

    said = [
        client.post(path, json=body).status_code
        for path, body in (
            (EMBEDDINGS, tokens), (EMBEDDINGS, texts), ("/v1/completions", prompt), (CHAT, messages),
            ("/v1/vector_stores/vs_1/file_batches", files),
        )
    ]  # fmt: skip

    assert said == [404] * 5


@pytest.mark.parametrize("text", ["[{,", '"a",', "\\", '\\"', "[]"])
def test_punctuation_in_text_is_no_value(text: str) -> None:
    value = {"text": text * 500_000, "more": [text]}

    assert bodies.parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize("raw", [b'"' * 3_000_000, b"[" * 3_000_000, b"{}," * 1_000_000, b'{"a":[' + b"{}," * 400_000])
def test_invalid_json_of_any_size_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bodies.parse(raw)

    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"model": "nobody", "input": "x" * 70_000}),
        (CHAT, {"model": "nobody", "messages": [{"role": "user", "content": "x" * 70_000}]}),
        (EMBEDDINGS, {"model": "nobody", "input": list(range(10_001))}),
        ("/v1/vector_stores/vs_1/file_batches", {"files": [{"file_id": "file-1"}] * 10_000}),
    ],
)
def test_a_large_body_is_validated_in_a_thread(
    client: TestClient, validated: list[tuple[type, bool]], path: str, body: dict[str, Any], good: bool
) -> None:
    answer = client.post(path, json=body if good else body | {"model": 3})

    assert answer.status_code == (404 if good else 400)
    assert [on_loop for kind, on_loop in validated if kind is dict] == [False]
    if not good:
        assert answer.json()["error"]["code"] in ("invalid_type", "unknown_parameter")


def test_a_small_body_is_validated_at_once(client: TestClient, validated: list[tuple[type, bool]]) -> None:
    client.post(EMBEDDINGS, json={"model": "nobody", "input": "x"})

    assert validated == [(dict, True)]


def test_large_body_is_read_like_small_body(client: TestClient) -> None:
    """The same fields arrive, and what was not sent is not filled in."""
    items = [{"type": "message", "role": "user", "content": "x" * 70_000}]

    made = client.post("/v1/conversations", json={"items": items, "metadata": {"a": "b"}}).json()
    listed = client.get(f"/v1/conversations/{made['id']}/items").json()["data"]

    assert made["metadata"] == {"a": "b"}
    assert [item["content"][0]["text"] for item in listed] == ["x" * 70_000]


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/embeddings"])
def test_a_client_that_leaves_before_the_end_of_its_body_is_no_crash(
    app: FastAPI, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    sent: list[dict[str, Any]] = []
    arriving: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b'{"model": ', "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> dict[str, Any]:
        return next(arriving)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {make_key(app)}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [*headers, (b"content-length", b"20")], "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]

    assert sent[0]["status"] == 400
    assert "request_crashed" not in caplog.messages
