"""WebSockets: handshakes, frames and messages that are not what they say, or do not end."""

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.badinputs.case import Case
from tests.badinputs.world import World, raw_said

AREA = "WebSocket"
PATH = "/v1/responses"
_HANDSHAKE = (
    "Host: x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==",
)  # fmt: skip
_CREATE = {"type": "response.create", "model": "m", "input": "x"}
_MANY = 2_000  # messages at once


def upgrade(world: World, *lines: str, key: str = "", path: str = PATH) -> str:
    """Return the answer to a handshake."""
    head = [f"GET {path} HTTP/1.1", *_HANDSHAKE, f"Authorization: Bearer {key or world.key}", *lines, "", ""]
    return raw_said(world.raw("\r\n".join(head).encode("latin-1"), wait=2.0))


def _opens(*lines: str, key: str = "", path: str = PATH) -> Callable[[World], str]:
    return lambda world: upgrade(world, *lines, key=key, path=path)


def talk(world: World, *messages: str | Iterable[str], raw: bytes = b"") -> str:
    """Send messages, and raw bytes after them; count what comes for each, up to the end of the connection."""
    url, headers = f"ws://127.0.0.1:{world.port}{PATH}", {"Authorization": f"Bearer {world.key}"}
    found: Counter[str] = Counter()
    with connect(url, additional_headers=headers, max_size=None, max_queue=None) as connection:
        try:
            for message in messages:
                connection.send(message)
            connection.socket.sendall(raw)
            for _ in range(len(messages) + bool(raw)):
                found[_said(json.loads(connection.recv(timeout=20 * world.margin)))] += 1
        except ConnectionClosed as closed:
            found[f"closed with {closed.rcvd.code}" if closed.rcvd else "closed"] += 1
    return ", ".join(f"{count} x {text}" if count > 1 else text for text, count in found.items())


def _sends(*messages: str | Iterable[str], raw: bytes = b"") -> Callable[[World], str]:
    return lambda world: talk(world, *messages, raw=raw)


def _said(event: dict[str, Any]) -> str:
    return f"{event['status']} {event['error']['code']}"


def _frame(opcode: int, data: bytes, *, masked: bool = True) -> bytes:
    length = struct.pack("!BH", 126 | 0x80 * masked, len(data))
    return bytes([0x80 | opcode]) + length + (bytes(4) if masked else b"") + data


def cases() -> Iterator[Case]:
    handshakes: dict[str, tuple[str, list[str], dict[str, str]]] = {
        "a handshake with a wrong key": ("401 invalid_api_key", [], {"key": "nm_wrong"}),
        "a handshake for another path": ("404 unknown_url", [], {"path": "/v1/files"}),
        "a handshake for a page": ("404 unknown_url", [], {"path": "/livez"}),
        "a handshake with a NUL in its path": ("400 invalid_url", [], {"path": f"{PATH}%00"}),
        "a handshake with 1,000 headers": ("400 invalid_http", ["X: y"] * 1000, {}),
        "a handshake with a header of 20 KB": ("400 invalid_http", ["X: " + "y" * 20_000], {}),
        "a handshake with a header of 1 MB": ("431 request_head_too_large", ["X: " + "y" * 1_000_000], {}),
    }
    for name, (expected, lines, given) in handshakes.items():
        yield Case(AREA, name, expected, _opens(*lines, **given))
    messages: dict[str, tuple[str, str | list[str]]] = {
        "no JSON": ("400 invalid_json", "{"),
        "an array": ("400 invalid_type", "[]"),
        "no type": ("400 missing_required_parameter", "{}"),
        "a type that is none": ("400 invalid_value", json.dumps({"type": "session.update"})),
        "100,000 brackets": ("400 invalid_json", "[" * 100_000),
        "a NUL character": ("400 invalid_json", json.dumps({**_CREATE, "input": "a\0b"})),
        "a million values": ("400 too_many_values", json.dumps({**_CREATE, "input": [[]] * 1_000_000})),
        "a stream id of a megabyte": ("400 invalid_stream_id", json.dumps({**_CREATE, "stream_id": "a" * 1_000_000})),
        "a message of 5 MB": ("closed with 1009", "x" * 5_000_000),
        "a message of 5 MB in frames of 1 KB": ("closed with 1009", ["x" * 1000] * 5_000),
        "a message of 20,000 empty frames": ("closed with 1009", [""] * 20_000),
    }
    for name, (expected, message) in messages.items():
        yield Case(AREA, name, expected, _sends(message))
    frames = {
        "a frame without a mask": _frame(1, b"{}", masked=False),
        "a frame of an unknown kind": _frame(3, b"{}"),
        "a continuation of nothing": _frame(0, b"{}"),
    }
    for name, data in frames.items():
        yield Case(AREA, name, "closed with 1002", _sends(raw=data))
    yield Case(AREA, "text that is not UTF-8", "closed with 1007", _sends(raw=_frame(1, b"\xff")))
    many = f"{_MANY} x 400 missing_required_parameter"
    yield Case(AREA, f"{_MANY} messages at once", many, _sends(*["{}"] * _MANY), seconds=20.0)
