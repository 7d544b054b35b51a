"""Server-sent events as they come over the wire: cut anywhere, and ended in each of the ways that servers end them."""

import json
from collections.abc import AsyncIterator

import pytest

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
async def test_events_are_found_wherever_their_bytes_are_cut(size: int) -> None:
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


def test_a_usage_is_read() -> None:
    body = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}}'

    assert wire.usage_of(body) == Usage(7, 7, 2)
