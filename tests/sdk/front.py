"""Stand between a suite and the server, and lose answers after the server has given them.

/lost/NAME/v1/…     handed on; the first answer under this name is dropped and the connection closed
/broken/NAME/v1/…   the same, with a 502 in place of the first answer
/late/NAME/v1/…     the same, after two seconds
/plain/NAME/v1/…    handed on
/apart/NAME/v1/…    handed on from an address that no other name has
/seen/NAME          what was handed on under this name, as JSON
/inbox/NAME         what the webhook receiver got at `ok/NAME`, as JSON
"""

import http.client
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.support.receiver import Receiver
from tests.support.system import pause

_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_BROKEN = b"<html>Bad gateway</html>"


class Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, server: str, receiver: Receiver) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(server)
        self.receiver = receiver
        self._addresses: dict[str, str] = {}
        self.seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.came: dict[str, int] = defaultdict(int)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def address_of(self, name: str) -> str:
        return self._addresses.setdefault(name, f"127.0.1.{len(self._addresses) + 1}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def do_GET(self) -> None:
        kind, name, path = self._parts()
        if kind == "seen":
            self._tell(self.server.seen[name])
        elif kind == "inbox":
            got = self.server.receiver.of(f"ok/{name}")
            self._tell([{"headers": one.headers, "body": one.body.decode()} for one in got])
        else:
            self._hand_on(kind, name, path)

    def do_POST(self) -> None:
        self._hand_on(*self._parts())

    def do_DELETE(self) -> None:
        self._hand_on(*self._parts())

    def _parts(self) -> tuple[str, str, str]:
        kind, name, *rest = self.path.lstrip("/").split("/", 2)
        return kind, name, f"/{rest[0] if rest else ''}"

    def _hand_on(self, kind: str, name: str, path: str) -> None:
        with self.server.lock:
            self.server.came[name] += 1
            first = self.server.came[name] == 1
        status, headers, body = self._ask(path, self.server.address_of(name) if kind == "apart" else "127.0.0.1")
        seen = self.server.seen[name]
        seen.append({"method": self.command, "path": path, "key": self.headers["Idempotency-Key"], "status": status})
        if kind in ("lost", "late") and first:
            pause(2 if kind == "late" else 0)
            self.close_connection = True
        elif kind == "broken" and first:
            self._answer(502, [("Content-Type", "text/html")], _BROKEN)
        else:
            self._answer(status, headers, body)

    def _ask(self, path: str, address: str) -> tuple[int, list[tuple[str, str]], bytes]:
        body = self._body()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_CONNECTION}
        behind = self.server.behind
        connection = http.client.HTTPConnection(
            behind.hostname or "", behind.port, timeout=30, source_address=(address, 0)
        )
        try:
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _tell(self, told: Any) -> None:
        self._answer(200, [("Content-Type", "application/json")], json.dumps(told).encode())

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OF_ONE_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def standing_before(server: str, receiver: Receiver) -> Iterator[Front]:
    front = Front(server, receiver)
    thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.shutdown()
        front.server_close()
        thread.join(10)
