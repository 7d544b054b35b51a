"""Notes every address outside this machine that a Python process looks up or connects to. This folder on PYTHONPATH.

Python's own audit events say it, so a library that sends statistics from a thread of its own is heard too. uvloop
raises none: of its loops, which stay what they are, those methods are noted that lead outside. Datagrams are left out:
to learn its own address a program connects one and sends nothing. Code that is neither Python's nor uvloop's (gRPC's,
Rust's) is not heard.
"""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_LOG = os.environ["NIGHTMILL_TEST_CONNECTIONS"]
_HERE = {"", "localhost", "0.0.0.0", "::", "::1", socket.gethostname()}


def _outside(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    return name not in _HERE and not name.startswith("127.")


def _heard(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        connection, address = arguments
        datagram = getattr(connection, "type", None) == socket.SOCK_DGRAM
        host = address[0] if isinstance(address, tuple) and not datagram else ""
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    _note(event, host)


def _note(event: str, host: object) -> None:
    if _outside(host):
        with open(_LOG, "a") as log:  # noqa: PTH123 (as little as can be is imported before every process)
            log.write(f"{os.getpid()} {event} {host!r} {' '.join(sys.argv[:3])}\n")


def _noted(name: str, method: Callable[..., Any], host_of: Callable[..., object]) -> Callable[..., Any]:
    def noted(loop: object, *arguments: Any, **named: Any) -> Any:
        _note(f"uvloop.{name}", host_of(*arguments, **named))
        return method(loop, *arguments, **named)

    return noted


def _address(connection: socket.socket, address: object) -> object:
    stream = connection.type == socket.SOCK_STREAM
    return address[0] if isinstance(address, tuple) and stream else ""


def _endpoint(_: object, host: object = None, *__: object, **___: object) -> object:
    return host


def _first(host: object = None, *_: object, **__: object) -> object:
    return host


sys.addaudithook(_heard)
with suppress(ImportError):
    import uvloop

    for _name, _host_of in (("create_connection", _endpoint), ("getaddrinfo", _first), ("sock_connect", _address)):
        setattr(uvloop.Loop, _name, _noted(_name, getattr(uvloop.Loop, _name), _host_of))
