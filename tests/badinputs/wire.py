"""Requests that are not what they say, byte by byte over a socket."""

import threading
import time
from collections.abc import Iterator

from tests.badinputs.case import Case
from tests.badinputs.world import World, raw_said

AREA = "HTTP"
GOOD = b'{"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}'


def request(world: World, *lines: str, body: bytes = b"", key: bool = True) -> bytes:
    """Send a POST with these headers."""
    head = ["POST /v1/batches HTTP/1.1", "Host: x", "Content-Type: application/json", *lines]
    if key:
        head.append(f"Authorization: Bearer {world.key}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def last(world: World, *lines: str, body: bytes = b"") -> str:
    """Return the answer to a request that ends its connection."""
    return raw_said(world.raw(request(world, *lines, "Connection: close", body=body)))


def smuggled(world: World) -> str:
    """Behind a body of the length that is said stands another request, without a key."""
    inner = b"GET /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    return raw_said(world.raw(request(world, "Content-Length: 2", body=b"{}" + inner)))


def endless(world: World) -> str:
    """Send a chunked body without an end, while others must be served."""
    sent = request(world, "Transfer-Encoding: chunked", "Connection: close", body=b'5\r\n{"a":\r\n')
    return _stands_still(world, sent, world.idle_seconds)


def short(world: World) -> str:
    """Send a Content-Length that is larger than the body, and keep the connection open."""
    return _stands_still(
        world, request(world, "Content-Length: 1000", "Connection: close", body=GOOD), world.idle_seconds
    )


def slow_head(world: World) -> str:
    """Send a head, one byte at a time."""
    return _stands_still(world, b"POST /v1/batches HTTP/1.1\r\nX: ", world.head_seconds, drip=b"x")


def _stands_still(world: World, sent: bytes, seconds: float, drip: bytes = b"") -> str:
    """Return the outcome, and whether the server gave the request up in time while others were served."""
    stop, served = threading.Event(), []

    def pieces() -> Iterator[bytes]:
        yield sent
        until = time.monotonic() + seconds + 10 * world.margin
        while drip and time.monotonic() < until and not stop.wait(0.2):
            yield drip

    def others() -> None:
        while not stop.wait(0.1):
            served.append(world.client.get("/v1/batches?limit=1").status_code)

    thread = threading.Thread(target=others)
    thread.start()
    began = time.monotonic()
    try:
        answer = world.raw(pieces(), wait=seconds + 10 * world.margin)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""  # it was closed while we wrote
    took = time.monotonic() - began
    stop.set()
    thread.join()
    assert set(served) == {200}
    in_time = "in time" if took < seconds + 5 * world.margin else f"after {took:.1f} s"
    return f"{raw_said(answer) or 'closed'}, {in_time}, others served"


def half(world: World) -> str:
    """Leave in the middle of the body."""
    return raw_said(world.raw(request(world, "Content-Length: 1000", body=GOOD), half_close=True)) or "closed"


def trailing(world: World) -> str:
    """Trailers without an end, of a request that was answered as it has no key."""
    sent = request(world, "Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\n", key=False)
    return _stands_still(world, sent, 0.0, drip=b"X: y\r\n" * 5_000)


def cases() -> Iterator[Case]:
    chunk = b"2\r\n{}\r\n0\r\n\r\n"
    bad = "400 invalid_http"
    lines: dict[str, tuple[str, list[str], bytes]] = {
        "Content-Length and Transfer-Encoding": (bad, ["Content-Length: 2", "Transfer-Encoding: chunked"], chunk),
        "Transfer-Encoding and Content-Length": (bad, ["Transfer-Encoding: chunked", "Content-Length: 2"], chunk),
        "Transfer-Encoding: chunked, identity": (bad, ["Transfer-Encoding: chunked, identity"], chunk),
        "Transfer-Encoding with a space before the colon": (bad, ["Transfer-Encoding : chunked"], chunk),
        "a folded Transfer-Encoding": (bad, ["Transfer-Encoding:\r\n chunked"], chunk),
        "two Content-Lengths that differ": (bad, ["Content-Length: 2", "Content-Length: 3"], b"{}"),
        "a Content-Length of -1": (bad, ["Content-Length: -1"], b""),
        "a Content-Length of 1e3": (bad, ["Content-Length: 1e3"], b"{}"),
        "a Content-Length of +2": (bad, ["Content-Length: +2"], b"{}"),
        "a Content-Length beyond 64 bits": (bad, ["Content-Length: 99999999999999999999999"], b"{}"),
        "a Content-Length of a terabyte": ("413 request_too_large", ["Content-Length: 1000000000000"], b""),
        "a chunk size that is no number": (bad, ["Transfer-Encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n"),
        "a chunk size beyond 64 bits": (bad, ["Transfer-Encoding: chunked"], b"fffffffffffffffff\r\n{}"),
        "a chunk that is longer than its size": (bad, ["Transfer-Encoding: chunked"], b"1\r\n{}\r\n0\r\n\r\n"),
        "NUL in a header": (bad, ["X: a\0b", "Content-Length: 2"], b"{}"),
        "a bare CR in a header": (bad, ["X: a\rContent-Length: 2"], b"{}"),
        "trailers of 1 MB": (
            "431 request_head_too_large",
            ["Transfer-Encoding: chunked"],
            b"2\r\n{}\r\n0\r\nX: " + b"x" * 1_000_000,
        ),
        "a head of 1 MB": ("431 request_head_too_large", ["X: " + "x" * 1_000_000], b""),
        "100,000 headers": ("431 request_head_too_large", ["X: xxxxx"] * 100_000, b""),
    }
    for name, (expected, given, body) in lines.items():
        yield Case(AREA, name, expected, lambda world, given=given, body=body: last(world, *given, body=body))
    texts = {
        "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        "HTTP/9.9": b"GET /v1/files HTTP/9.9\r\nHost: x\r\n\r\n",
        "a method of 10 KB": b"G" * 10_000 + b" /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
        "no path": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    for name, text in texts.items():
        yield Case(AREA, name, bad, lambda world, text=text: raw_said(world.raw(text)))
    yield Case(AREA, "a request behind a body", "400 missing_required_parameter, 401 missing_api_key", smuggled)
    yield Case(AREA, "a chunked body without end", "408 request_timeout, in time, others served", endless)
    yield Case(AREA, "a Content-Length that promises more", "408 request_timeout, in time, others served", short)
    yield Case(AREA, "a head a byte at a time", "closed, in time, others served", slow_head)
    yield Case(AREA, "trailers without end", "closed, in time, others served", trailing)
    yield Case(AREA, "a client that leaves in its body", "closed", half)
