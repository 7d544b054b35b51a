"""Server-sent events as they come over the wire: cut anywhere, and ended in each of the ways that servers end them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobs.requests.endpoints import CHAT, EMBEDDINGS, RESPONSES
from workers.engines import wire
from workers.engines.port import Usage

STREAM = (
    b'event: response.created\r\ndata: {"a":1}\r\n\r\n: alive\n\n'
    b'event: response.completed\ndata: {"b":2}\n\ndata: {"c":3}\n\n'
)


async def parts(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(data: bytes, size: int, most: int = 1000) -> list[bytes]:
    return [event async for event in wire.events(wire.lines(parts(data, size), most))]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_events_are_parsed_across_arbitrary_byte_splits(size: int) -> None:
    assert await read(STREAM, size) == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize("name", ["response.incomplete", "response.failed", "error"])
async def test_a_stream_ends_with_an_event_that_is_the_last_by_its_name(name: str) -> None:
    assert await read(b"event: %b\ndata: {}\n\n" % name.encode(), 5) == [b"{}"]


async def test_a_stream_of_chunks_ends_with_done() -> None:
    assert await read(b"data: {}\n\ndata: [DONE]\n\ndata: {}\n\n", 5) == [b"{}"]


@pytest.mark.parametrize("data", [b"", b"data: {}\n\n", b"event: response.created\ndata: {}\n\n"])
async def test_a_stream_that_ends_without_either_is_broken(data: bytes) -> None:
    with pytest.raises(wire.BrokenStream, match="before its last event"):
        await read(data, 5)


@pytest.mark.parametrize("size", [10, 10_000])
async def test_a_line_may_be_long_but_not_too_long(size: int) -> None:
    line = b"data: " + b"x" * 900
    assert await read(line + b"\n\ndata: [DONE]\n", size) == [b"x" * 900]

    with pytest.raises(wire.BrokenStream, match="too large"):
        await read(line + b"x" * 200, size)


@pytest.mark.parametrize("count", [-1, (1 << 40) + 1, 1 << 63, 1 << 80, "7", True])
def test_a_usage_that_no_answer_can_have_is_none(count: object) -> None:
    body = json.dumps({"id": "a", "usage": {"prompt_tokens": count, "completion_tokens": 1}}).encode()

    assert wire.usage_of(body) == Usage()


DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize("body", [b'{"usage":5,oops', b"[5]", b'{"a":%b}' % DEEP, b'{"usage":5,"a":%b}' % DEEP])
def test_usage_of_unreadable_body_raises_not_json(body: bytes) -> None:
    with pytest.raises(wire.NotJson):
        wire.usage_of(body)


@pytest.mark.parametrize("depth", [*range(900, 1010), 5000])
def test_too_deeply_nested_error_is_reported_as_raw_text(depth: int) -> None:
    error = json.loads(wire.error_body(500, b'{"detail":' * depth + b"1" + b"}" * depth))["error"]

    assert error["type"] == "server_error"
    assert error["message"] == "1" or error["message"].startswith('{"detail":{"detail":')


@pytest.mark.parametrize(
    ("chunk", "told"),
    [
        (b'{"id":"a","choices":[]}', b'{"id":"a","choices":[],"usage":null}'),
        (b'{"choices":[{"delta":{"content":"usage"}}] }', b'{"choices":[{"delta":{"content":"usage"}}] ,"usage":null}'),
        (b'{"choices":["\\"usage\\":"]}', b'{"choices":["\\"usage\\":"],"usage":null}'),
        (b'{"choices":[{"usage":1}]}', b'{"choices":[{"usage":1}],"usage":null}'),
        *((body, body) for body in (
            b'{"choices":[], "usage" : null}', b'{"usage":{"prompt_tokens":1},"choices":[]}',
            b'{"error":{"message":"no"}}', b"[]", b"nonsense", b"", b'{"choices":%b}' % DEEP,
        )),
    ],
)  # fmt: skip
def test_chunk_with_choices_and_without_usage_gets_null_usage(chunk: bytes, told: bytes) -> None:
    assert wire.add_null_usage(chunk) == told


CHOICE = {"index": 0, "logprobs": None, "finish_reason": "stop"}
MESSAGE = {"role": "assistant", "content": "refusal", "refusal": None}
WHOLE = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{**CHOICE, "message": MESSAGE}],
}


def _without(*path: Any) -> bytes:
    said = json.loads(json.dumps(WHOLE))
    *way, last = path
    holder = said
    for step in way:
        holder = holder[step]
    del holder[last]
    return json.dumps(said).encode()


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("choices", "id", "created")])
def test_a_chat_that_lacks_a_field_gets_it(name: str) -> None:
    assert json.loads(wire.complete(CHAT, _without(name), {"model": "m"})) == WHOLE


@pytest.mark.parametrize("name", CHOICE)
def test_a_choice_that_lacks_a_field_gets_it(name: str) -> None:
    assert json.loads(wire.complete(CHAT, _without("choices", 0, name), {})) == WHOLE


@pytest.mark.parametrize("name", ["role", "refusal"])
def test_a_message_that_lacks_a_field_gets_it(name: str) -> None:
    assert json.loads(wire.complete(CHAT, _without("choices", 0, "message", name), {})) == WHOLE


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(WHOLE, indent=1).encode(), b'{"choices":[]}', b'{"choices":[{"text":"a"}]}', b'{"error":{}}',
        b'{"choices":[{"message":null}]}', b'{ "usage":{},"odd":"\\u0000"}', b"[]", b"", b'{"output":null}',
        b'{"choices":[{"message":{}}],"n":1e999}', b'{"output":["x"]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", [CHAT, RESPONSES, EMBEDDINGS])
def test_complete_or_unrecognized_body_is_unchanged(url: str, body: bytes) -> None:
    assert wire.complete(url, body, {}) == body
    assert url == CHAT or wire.events_of_answer(url, body, {}) == []


@pytest.mark.parametrize(
    ("options", "wanted"), [({"include_usage": True}, True), ({"include_usage": 1}, False), ({}, False), (5, False)]
)
def test_usage_is_wanted_only_with_include_usage_true(options: Any, wanted: bool) -> None:
    assert wire.wants_usage({"stream_options": options}) == wanted


def test_a_usage_is_read() -> None:
    body = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}}'

    assert wire.usage_of(body) == Usage(7, 7, 2)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, b'{"choices": [{"message": {"role": "assistant", "content": "", "tool_calls": ["x"]}}]}'),
        (RESPONSES, b'{"output": [{"type": "function_call", "call_id": "c"}]}'),
        (RESPONSES, b'{"output": [{"type": "message", "content": [{"text": "x"}]}]}'),
        (RESPONSES, b'{"output": [{"type": "message", "content": 1}]}'),
    ],
)
def test_an_answer_with_a_part_that_is_none_is_not_written_out(url: str, body: bytes) -> None:
    assert wire.events_of_answer(url, body, {}) == []


@pytest.mark.parametrize("count", ['"5"', "1.5", "{}", "null"])
def test_a_response_with_an_odd_usage_is_completed(count: str) -> None:
    body = b'{"output": [], "usage": {"input_tokens": %b, "output_tokens": 3}}' % count.encode()

    usage = json.loads(wire.complete(RESPONSES, body, {}))["usage"]

    assert (usage["output_tokens"], usage["total_tokens"]) == (3, 3)
