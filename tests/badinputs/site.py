"""A public web site, as far as the guard is told, that behaves as badly as its path says.

It stands beside the canary, on the same port: a name that is moved from one to the other finds somebody there.
"""

import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Self
from urllib.parse import parse_qs, urlsplit

PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\nA page on an okapi.\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
_MIB = 1 << 20
_GIVEN_UP = 60.0  # by the site, of who neither reads nor goes


class Site:
    """An HTTPS server on an address of this machine. `asked` are the paths of all requests."""

    def __init__(self, address: str, port: int, tls: ssl.SSLContext) -> None:
        self.asked: list[str] = []
        self._tls = tls
        self._closing = threading.Event()
        self._listener = socket.create_server((address, port), backlog=128)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_GIVEN_UP)
        with suppress(OSError), self._tls.wrap_socket(connection, server_side=True) as secured:
            head = b""
            while b"\r\n\r\n" not in head:
                head += (piece := secured.recv(65_536))
                if not piece:
                    return
            path = head.split(b" ", 2)[1].decode("latin-1")
            self.asked.append(path)
            for piece in self._answer(path):
                secured.sendall(piece)

    def _answer(self, path: str) -> Iterator[bytes]:
        name, _, rest = path[1:].partition("?")
        if name == "to":
            query = parse_qs(rest)
            yield moved(query["place"][0], query.get("status", ["302"])[0])
        elif name.startswith("hops/"):
            left = int(name.partition("/")[2])
            yield moved(f"/hops/{left - 1}") if left else PAGE
        elif name in WAYS:
            yield from WAYS[name](self._closing)
        else:
            yield PAGE if urlsplit(path).path == "/page" else b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"


def moved(place: str, status: str = "302") -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


def _endless(_: threading.Event) -> Iterator[bytes]:
    yield _HEAD + b"\r\n"
    while True:
        yield b"okapi " * 100_000


def _endless_chunks(_: threading.Event) -> Iterator[bytes]:
    yield _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"1\r\nx\r\n" * 10_000


def _endless_head(_: threading.Event) -> Iterator[bytes]:
    yield _HEAD
    while True:
        yield b"X-Okapi: okapi\r\n" * 1_000


def _endless_line(_: threading.Event) -> Iterator[bytes]:
    yield _HEAD + b"X-Okapi: "
    while True:
        yield b"okapi " * 10_000


def _endless_warnings(_: threading.Event) -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000


def _slow_body(closing: threading.Event) -> Iterator[bytes]:
    yield _HEAD + b"Content-Length: 1000000\r\n\r\n"
    while not closing.wait(1):
        yield b"x"


def _slow_head(closing: threading.Event) -> Iterator[bytes]:
    for byte in _HEAD:
        if closing.wait(1):
            return
        yield bytes([byte])


def _silent(closing: threading.Event) -> Iterator[bytes]:
    closing.wait(_GIVEN_UP)
    yield b""


def _once(data: bytes) -> Callable[[threading.Event], Iterator[bytes]]:
    return lambda _: iter([data])


def _bomb() -> bytes:
    """Build a hundred MiB of zeros."""
    stream = zlib.compressobj(9, wbits=31)
    return b"".join([*(stream.compress(bytes(_MIB)) for _ in range(100)), stream.flush()])


_PACKED = gzip.compress(b"A page on an okapi.")
WAYS: Mapping[str, Callable[[threading.Event], Iterator[bytes]]] = {
    "endless": _endless,
    "endless-chunks": _endless_chunks,
    "endless-head": _endless_head,
    "endless-line": _endless_line,
    "endless-warnings": _endless_warnings,
    "slow-body": _slow_body,
    "slow-head": _slow_head,
    "silent": _silent,
    "bomb": lambda _: iter([_HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + _bomb()]),
    "packed-file": lambda _: iter([_HEAD + b"Content-Length: %d\r\n\r\n" % len(_PACKED) + _PACKED]),
    "cut": _once(_HEAD + b"Content-Length: 1000\r\n\r\nA page on"),
    "two-lengths": _once(_HEAD + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nA page on"),
    "an-odd-chunk": _once(_HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\nx"),
    "nonsense": _once(b"\0\1 this is not HTTP\r\n\r\n"),
    "nothing": _once(b""),
}
