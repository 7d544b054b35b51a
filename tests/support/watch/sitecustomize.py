"""Notes every address outside this machine that a Python process looks up or connects to. This folder on PYTHONPATH.

Python's own audit events say it, so a library that sends statistics from a thread of its own is heard too. Datagrams
are left out: to learn its own address a program connects one and sends nothing.
"""

import os
import socket
import sys

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
    if _outside(host):
        with open(_LOG, "a") as log:  # noqa: PTH123 (as little as can be is imported before every process)
            log.write(f"{os.getpid()} {event} {host!r} {' '.join(sys.argv[:3])}\n")


sys.addaudithook(_heard)
