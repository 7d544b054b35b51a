"""A small HTTP server that receives webhooks, verifies them as Standard Webhooks, and prints each once."""

import json
import re
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

from cli.errors import Trouble
from cli.terminal import say

_MAX_BODY = 1 << 20  # bytes
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)


class Receiver:
    """Listens from its making on; answers once it runs. 204 for what it accepts, 400 for what it does not."""

    def __init__(self, host: str, port: int) -> None:
        try:
            self._http = ThreadingHTTPServer((host, port), _Handler)
        except OSError as error:
            raise Trouble(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self._http.daemon_threads = True
        self._http.receive = self._receive  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._verify: Webhook | None = None
        self._wanted = 0
        self.url = f"http://{host}:{self._http.server_port}/"

    def run(self, secret: str, count: int = 0) -> None:
        """Receive until `count` different events were verified, or until Ctrl-C."""
        try:
            self._verify = Webhook(secret) if secret else None
        except ValueError as error:
            self._http.server_close()
            raise Trouble("this is no signing secret; one looks like whsec_…") from error
        if not secret:
            say("no signing secret: events are printed without a check")
        self._wanted = count
        try:
            self._http.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            say("stopped")
        finally:
            self._http.server_close()

    def stop(self) -> None:
        """Make `run` return, from any thread."""
        threading.Thread(target=self._http.shutdown, daemon=True).start()

    def _receive(self, headers: dict[str, str], body: bytes) -> int:
        try:
            event = self._verify.verify(body, headers) if self._verify else json.loads(body)
        except (WebhookVerificationError, ValueError, RecursionError) as error:
            say(f"refused: {error}")
            return 400
        with self._lock:
            self._print(headers.get("webhook-id", ""), event)
            if self._wanted and len(self._seen) >= self._wanted:
                self.stop()
        return 204

    def _print(self, webhook_id: str, event: object) -> None:
        again = " (again)" if webhook_id in self._seen else ""
        self._seen.add(webhook_id)
        found = event if isinstance(event, dict) else {}
        data = found.get("data")
        about = data.get("id", "") if isinstance(data, dict) else ""
        checked = "verified" if self._verify else "not verified"
        say(f"{time.strftime('%H:%M:%S')} {found.get('type', '?')} {about} {webhook_id} {checked}{again}")


class BodyReader(BaseHTTPRequestHandler):
    """Read the body of one webhook and answer with the status that `receive` returns for it."""

    timeout = 15

    def receive(self, headers: dict[str, str], body: bytes) -> int:
        """Return the status to answer. The names of `headers` are in lower case."""
        raise NotImplementedError

    def do_POST(self) -> None:
        length = _LENGTH.fullmatch(self.headers.get("content-length", "0"))
        if length is None:
            self._answer(HTTPStatus.BAD_REQUEST)
        elif int(length[0]) > _MAX_BODY:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._answer(self.receive(headers, self.rfile.read(int(length[0]))))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Events are printed, requests are not."""


class _Handler(BodyReader):
    def receive(self, headers: dict[str, str], body: bytes) -> int:
        receive: Callable[[dict[str, str], bytes], int] = self.server.receive  # type: ignore[attr-defined]
        return receive(headers, body)
