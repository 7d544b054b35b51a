"""A server that says as little as can be, and takes no notice of `stream`: clients are answered as OpenAI would."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from jobs.db.engine import Database
from jobs.fleet.models_file import Registry
from jobs.requests.endpoints import CHAT, RESPONSES
from tests.support.inline_deployment import jsonl, running
from tests.support.interactive_api import MODEL, Shop
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.router import Router

ASKED: dict[str, Any] = {
    "instructions": "Be brief.", "temperature": 0.5, "parallel_tool_calls": False,
    "tools": [{"type": "function", "name": "weather", "parameters": {}}],
}  # fmt: skip
EXPECTED = {
    **ASKED,
    "tool_choice": "auto",
    "top_p": 1.0,
    "truncation": "disabled",
    "top_logprobs": 0,
    "service_tier": "auto",
}


TEXT = {"type": "output_text", "text": "Hi there."}
STREAM = [
    {"type": "response.created", "response": {"output": []}},
    {"type": "response.output_item.added", "item": {"type": "message"}},
    {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
    {"type": "response.output_text.delta", "delta": "Hi "},
    {"type": "response.output_text.delta", "delta": "there."},
    {"type": "response.output_text.done", "text": "Hi there."},
    {"type": "response.content_part.done", "part": TEXT},
    {"type": "response.output_item.done", "item": {"type": "message", "content": [TEXT]}},
]
USAGE = {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 2}
ANSWERS: dict[str, Any] = {
    "/v1/models": {"data": [{"id": MODEL}]},
    RESPONSES: {
        "output": [{"type": "message", "content": [TEXT]}],
        "usage": USAGE,
        "tools": [],
        "parallel_tool_calls": True,
        "tool_choice": "none",  # whatever was asked
    },
    CHAT: {"choices": [{"message": {"content": "Hi there."}}]},
}


def _event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


class _Sparse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, body = "application/json", json.dumps(ANSWERS[self.path]).encode()
        if b"!events" in asked:
            last = {"type": "response.completed", "response": ANSWERS[self.path]}
            kind, body = "text/event-stream", b"".join(_event(event) for event in [*STREAM, last])
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sparse) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _engine(server: str) -> HttpEngine:
    return HttpEngine([Endpoint(server)], timeout=30)


@pytest.fixture
def shop(make_shop: Callable[..., Shop], server: str) -> Iterator[Shop]:
    made = make_shop(around=lambda _: _engine(server))
    with made.open():
        yield made


def _assert_complete(response: dict[str, Any]) -> None:
    Response.model_validate(response)
    assert response["tools"] == [{**ASKED["tools"][0], "description": None, "strict": None}]
    assert {name: response[name] for name in EXPECTED} | {"tools": ASKED["tools"]} == EXPECTED
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 1, "cache_write_tokens": 0}
    assert response["output"][0]["content"][0]["logprobs"] == []


def test_a_response_is_whole(shop: Shop) -> None:
    made = shop.client.responses.create(model=MODEL, input="Hello", **ASKED)

    _assert_complete(made.to_dict())
    _assert_complete(shop.client.responses.retrieve(made.id).to_dict())


def test_a_response_that_comes_whole_is_streamed(shop: Shop) -> None:
    with shop.client.responses.stream(model=MODEL, input="Hello", **ASKED) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hi there."
    _assert_complete(final.to_dict())
    assert shop.client.responses.retrieve(final.id).output_text == "Hi there."


def test_the_events_of_a_sparse_stream_are_completed(shop: Shop) -> None:
    with shop.client.responses.stream(model=MODEL, input="!events", **ASKED) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert [event.sequence_number for event in events] == list(range(9))
    for event in events[1:-1]:
        TypeAdapter[Any](ResponseStreamEvent).validate_python(event.to_dict())
        item_id = event.item.id if hasattr(event, "item") else event.item_id  # type: ignore[union-attr]
        assert item_id == final.output[0].id
    assert events[0].response.status == "in_progress"  # type: ignore[union-attr]
    _assert_complete(final.to_dict())


def test_a_chat_that_comes_whole_is_streamed(shop: Shop) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]

    chunks = list(shop.client.chat.completions.create(model=MODEL, messages=messages, stream=True))

    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hi there."]
    assert chunks[0].choices[0].finish_reason == "stop"
    assert chunks[0].model == MODEL


def test_every_line_of_a_batch_is_whole(db: Database, tmp_path: Path, server: str) -> None:
    asked = {RESPONSES: {"input": "Hello", **ASKED}, CHAT: {"messages": [{"role": "user", "content": "Hello"}]}}
    with running(db, tmp_path, _engine(server)) as inline:
        for url, body in asked.items():
            line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": MODEL, **body}}
            [job] = inline.drain(inline.submit(jsonl([line]), endpoint=url))
            [[result], errors] = inline.results(job)
            assert errors == []
            told = result["response"]["body"]
            if url == RESPONSES:
                _assert_complete(told)
            else:
                ChatCompletion.model_validate(told)
                assert json.dumps(told["choices"][0]["logprobs"]) == "null"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"truncation": "bogus"}, "truncation"),
    (RESPONSES, {"include": ["bogus"]}, "include[0]"),
    (RESPONSES, {"service_tier": "bogus"}, "service_tier"),
    (RESPONSES, {"reasoning": {"effort": "bogus"}}, "reasoning.effort"),
    (CHAT, {"service_tier": "bogus"}, "service_tier"),
    (CHAT, {"web_search_options": {}}, "web_search_options"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions"),
]
PROMPT: dict[str, Any] = {RESPONSES: {"input": "Hi"}, CHAT: {"messages": [{"role": "user", "content": "Hi"}]}}


def test_unsupported_fields_are_refused_for_clients_and_batch_lines(
    make_shop: Callable[..., Shop], db: Database, tmp_path: Path, server: str
) -> None:
    def routed() -> Router:
        return Router([_engine(server)], Registry({}, {}, tmp_path / "models.yaml"))

    def check(error: dict[str, Any], param: str) -> None:
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert error["code"] in ("invalid_value", "unsupported_parameter")

    shop = make_shop(around=lambda _: routed())
    with shop.open():
        for url, fields, param in REFUSED:
            for extra in ({}, {"stream": True}, {"background": True} if url == RESPONSES else {"store": True}):
                told = shop.post(url.removeprefix("/v1/"), {"model": MODEL, **PROMPT[url], **fields, **extra})
                assert told.status_code == 400, (fields, extra)
                check(told.json()["error"], param)
    with running(db, tmp_path, routed()) as inline:
        for url in (RESPONSES, CHAT):
            cases = [(fields, param) for at, fields, param in REFUSED if at == url]
            lines = [
                {"custom_id": param, "method": "POST", "url": url, "body": {"model": MODEL, **PROMPT[url], **fields}}
                for fields, param in cases
            ]
            [job] = inline.drain(inline.submit(jsonl(lines), endpoint=url))
            [good, failed] = inline.results(job)
            assert good == []
            for line in failed:
                check(line["response"]["body"]["error"], line["custom_id"])
            assert {line["custom_id"] for line in failed} == {param for _, param in cases}
