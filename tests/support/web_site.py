"""A web site in this process, whose pages can change, move, stall and break."""

import socket
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(slots=True)
class Page:
    """`status` 0 hangs up; `every` seconds pass before each `piece` bytes; `claims` is its Content-Length."""

    content: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    every: float = 0.0
    piece: int = 1
    claims: int | None = None


class Site:
    """Pages by path; `asked` are the headers of each request, by path."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: dict[str, list[dict[str, str]]] = defaultdict(list)
        self._told: dict[str, list[int]] = defaultdict(list)
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def put(self, path: str, content: str | bytes, *, type: str = "text/plain", etag: str = "", **facts: Any) -> None:  # noqa: A002
        headers = {"Content-Type": type, **({"ETag": etag} if etag else {}), **facts.pop("headers", {})}
        self.pages[path] = Page(content.encode() if isinstance(content, str) else content, headers=headers, **facts)

    def move(self, path: str, place: str, status: int = 302) -> None:
        self.put(path, "moved", status=status, headers={"Location": place})

    def statuses(self, path: str) -> list[int]:
        return self._told[path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        page = self.pages.get(path, Page(b"", 404))
        self.asked[path].append(dict(request.headers.items()))
        status = page.status
        if status == 200 and page.headers.get("ETag") and request.headers.get("If-None-Match") == page.headers["ETag"]:
            status, page = 304, Page(b"", 304)
        self._told[path].append(status)
        request.close_connection = True
        if not status:
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        request.send_response(status)
        for name, value in page.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(page.content) if page.claims is None else page.claims))
        request.end_headers()
        self._send(request, page)

    def _send(self, request: BaseHTTPRequestHandler, page: Page) -> None:
        try:
            if not page.every:
                request.wfile.write(page.content)
                return
            for start in range(0, len(page.content), page.piece):
                if self.closing.wait(page.every):
                    return
                request.wfile.write(page.content[start : start + page.piece])
                request.wfile.flush()
        except OSError:  # who asked has enough
            return
