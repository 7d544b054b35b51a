"""Receive the demo's webhooks: a local HTTP server that has the SDK verify each signature."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import openai
from openai import OpenAI

_MAX_BODY = 1 << 20  # bytes
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_Event = Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
_EVENTS: tuple[_Event, ...] = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


class Inbox:
    """Store verified events by batch. Refuse and count events that cannot be verified."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client
        self._secret = ""
        self._known = threading.Event()
        self.events: dict[str, str] = {}
        self.refused = 0
        self._lock = threading.Lock()

    def use(self, secret: str) -> None:
        """Verify with this secret from now on. Events that arrived earlier wait for it."""
        self._secret = secret
        self._known.set()

    def receive(self, body: bytes, headers: dict[str, str]) -> int:
        """Return the HTTP status for one event."""
        self._known.wait(10)
        try:
            event = self._client.webhooks.unwrap(body, headers, secret=self._secret)
        except (openai.InvalidWebhookSignatureError, ValueError):
            with self._lock:
                self.refused += 1
            return 400
        with self._lock:
            self.events[getattr(event.data, "id", "")] = event.type
        return 204


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    inbox: Inbox


class _Handler(BaseHTTPRequestHandler):
    """Read the body of one webhook and answer with the status that the inbox returns for it."""

    server: _Server
    timeout = 15

    def do_POST(self) -> None:
        length = _LENGTH.fullmatch(self.headers.get("content-length", "0"))
        if length is None:
            self._answer(HTTPStatus.BAD_REQUEST)
        elif int(length[0]) > _MAX_BODY:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._answer(self.server.inbox.receive(self.rfile.read(int(length[0])), headers))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Print nothing: requests are no part of the demo's report."""


@contextmanager
def registered(client: OpenAI) -> Iterator[Inbox]:
    """Yield an inbox that is registered as a webhook endpoint while the block runs."""
    inbox = Inbox(client)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.inbox = inbox
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/webhooks"
        endpoint = client.webhooks.create(name="nightmill demo", url=url, event_types=[*_EVENTS])
        inbox.use(endpoint.signing_secret)
        try:
            yield inbox
        finally:
            client.webhooks.delete(endpoint.id)
            server.shutdown()
