"""The cases of the acceptance tests of Open Responses (https://www.openresponses.org/compliance), written anew.

They are 17: ten over HTTP and seven over WebSocket. One of them checks a schema of theirs alone; in its place stands
that the phases of an engine's messages are passed on. A response is valid if OpenAI's SDK takes it and it has every
field that Open Responses requires.
"""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.sync.client import ClientConnection, connect

from tests.support.fake_engine import TOOL
from tests.support.interactive_api import MODEL, Shop
from workers.engines.port import Answer, Request

#: The required fields of `ResponseResource`.
REQUIRED = frozenset((
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "user", "usage",
    "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier",
    "prompt_cache_key",
))  # fmt: skip
ENDS = {"response.completed", "response.incomplete", "response.failed", "error"}
WEATHER: dict[str, Any] = {
    "type": "function", "name": "get_weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}  # fmt: skip
EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)

Body = dict[str, Any]


def check(response: Body, status: str = "completed") -> Body:
    """Return the response after checking it."""
    assert response.keys() >= REQUIRED
    Response.model_validate(response)
    assert all(tool["strict"] in (None, True, False) for tool in response["tools"])
    assert response["status"] == status
    return response


def create(shop: Shop, given: Any, **fields: Any) -> Body:
    answer = shop.post("responses", {"model": MODEL, "input": given, **fields})
    assert answer.status_code == 200, answer.text
    made: Body = answer.json()
    return check(made)


def message(role: str, content: Any, **fields: Any) -> Body:
    return {"type": "message", "role": role, "content": content, **fields}


def picture() -> str:
    """Return one red pixel as a data URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


INPUTS: dict[str, list[Body]] = {
    "basic": [message("user", "Greet me.")],
    "system prompt": [message("system", "You are a sailor."), message("user", "Greet me.")],
    "image input": [
        message(
            "user", [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": picture()}]
        )
    ],
    "multi-turn": [message("user", "I am Ada."), message("assistant", "Hello Ada."), message("user", "Who am I?")],
    "assistant phase": [
        message("assistant", "They gave a number.", phase="commentary"),
        message("assistant", "It is four.", phase="final_answer"),
        message("user", "Say it again."),
    ],
}


@pytest.mark.parametrize("case", INPUTS)
def test_an_input_is_answered(shop: Shop, case: str) -> None:
    assert create(shop, INPUTS[case])["output"][0]["type"] == "message"


def test_a_stream_has_valid_events(shop: Shop) -> None:
    text = shop.post("responses", {"model": MODEL, "input": [message("user", "Count.")], "stream": True}).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]

    for event in events:
        EVENT.validate_python(event)
    assert events[0]["type"] == "response.created"
    check(events[-1]["response"])


def test_a_function_is_called(shop: Shop) -> None:
    made = create(shop, [message("user", f"How is the weather in Lima? {TOOL}")], tools=[WEATHER])

    assert [item["type"] for item in made["output"]] == ["function_call"]


def test_phases_of_an_engine_are_passed_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = ["commentary", "final_answer"]
    part = {"type": "output_text", "text": "Four.", "annotations": []}
    message = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [part]}
    output = [{**message, "phase": phase} for phase in phases]

    def answer(_: Request) -> Answer:
        body = {"id": "r", "object": "response", "created_at": 1, "model": MODEL, "status": "completed"}
        return Answer(200, msgspec.json.encode({**body, "output": output}))

    monkeypatch.setattr(shop.engine, "_fault", answer)

    made = create(shop, "How many?")

    assert [item["phase"] for item in made["output"]] == phases


def compact(shop: Shop) -> list[Body]:
    """Return a compacted conversation."""
    items = [message("user", "We start on Tuesday."), message("assistant", "On Tuesday, then.")]
    answer = shop.post("responses/compact", {"model": MODEL, "input": items, "prompt_cache_key": "k"})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made.keys() == {"id", "object", "created_at", "output", "usage"}
    assert made["object"] == "response.compaction"
    output: list[Body] = made["output"]
    assert [item["type"] for item in output] == ["message", "compaction"]
    return output


def test_a_conversation_is_compacted(shop: Shop) -> None:
    assert compact(shop)


def test_compacting_needs_a_model(shop: Shop) -> None:
    assert shop.post("responses/compact", {"input": [message("user", "Shorten it.")]}).status_code == 400


@contextmanager
def open_connection(shop: Shop) -> Iterator[ClientConnection]:
    url = f"ws{shop.url.removeprefix('http')}/responses"
    headers = {"Authorization": f"Bearer {shop.client.api_key}", "Content-Type": "application/json"}
    with connect(url, additional_headers=headers, max_size=None) as socket:
        yield socket


def ask(socket: ClientConnection, given: Any, **fields: Any) -> Body:
    """Ask over a connection; return the valid response, or the error event."""
    socket.send(json.dumps({"type": "response.create", "model": MODEL, "input": given, **fields}))
    event: Body = {}
    while event.get("type") not in ENDS:
        event = json.loads(socket.recv(timeout=30))
        EVENT.validate_python(event)
    return event if event["type"] == "error" else check(event["response"])


def test_a_response_is_created_over_websocket(shop: Shop) -> None:
    with open_connection(shop) as socket:
        made = ask(socket, [message("user", "Count.")])

    assert shop.client.responses.retrieve(made["id"]).output_text == made["output"][0]["content"][0]["text"]


def test_websocket_connection_carries_successive_responses(shop: Shop) -> None:
    with open_connection(shop) as socket:
        made = [ask(socket, words, store=False) for words in ("one", "two")]

    assert made[0]["id"] != made[1]["id"]
    assert shop.asked == ["one", "two"]


def test_a_response_that_is_not_stored_is_continued_over_websocket(shop: Shop) -> None:
    with open_connection(shop) as socket:
        first = ask(socket, "The word is cobalt.", store=False)
        ask(socket, "Which word?", store=False, previous_response_id=first["id"])

    answer = first["output"][0]["content"][0]["text"]
    assert shop.asked[-1].split("\n") == ["The word is cobalt.", answer, "Which word?"]


def test_a_new_connection_knows_nothing_that_was_not_stored(shop: Shop) -> None:
    with open_connection(shop) as socket:
        first = ask(socket, "The word is copper.", store=False)
    with open_connection(shop) as socket:
        lost = ask(socket, "Go on.", store=False, previous_response_id=first["id"])
        again = ask(socket, [message("user", "Begin anew.")], store=False)

    assert lost["error"]["code"] == "previous_response_not_found"
    assert again["previous_response_id"] is None


def test_an_unknown_response_is_not_continued_over_websocket(shop: Shop) -> None:
    with open_connection(shop) as socket:
        error = ask(socket, "Go on.", store=False, previous_response_id="resp_missing")

    assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")


def test_a_continuation_that_fails_over_websocket_evicts_the_response(shop: Shop) -> None:
    output = {"type": "function_call_output", "call_id": "call_missing", "output": "nothing called it"}
    with open_connection(shop) as socket:
        first = ask(socket, "The word is ember.", store=False)
        failed = ask(socket, [output], store=False, previous_response_id=first["id"])
        stale = ask(socket, "Go on.", store=False, previous_response_id=first["id"])

    assert failed["type"] == "error"
    assert stale["error"]["code"] == "previous_response_not_found"


def test_a_compacted_conversation_goes_on_over_websocket(shop: Shop) -> None:
    with open_connection(shop) as socket:
        made = ask(socket, [*compact(shop), message("user", "Go on.")], store=False, tools=[])

    assert made["previous_response_id"] is None
