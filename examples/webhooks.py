"""Receive signed webhooks: a local HTTP server that has the SDK verify each signature.

OPENAI_BASE_URL and OPENAI_API_KEY name the server, which calls this machine only if it was started with
NIGHTMILL_WEBHOOK_ALLOW_PRIVATE=true. Run alone, this script prints what becomes of the batches of your project.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import InvalidWebhookSignatureError, OpenAI

NAME = "nightmill example"
EVENTS = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]


class Inbox(ThreadingHTTPServer):
    """Store the type of the last verified event of each object, by its id."""

    daemon_threads = True

    def __init__(self, client: OpenAI) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.client, self.secret = client, ""
        self.events: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    """Answer 204 to an event with a valid signature, and 400 to anything else."""

    server: Inbox
    timeout = 15

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            event = self.server.client.webhooks.unwrap(body, headers, secret=self.server.secret)
        except (InvalidWebhookSignatureError, ValueError):
            self.send_response(400)
        else:
            self.server.events[event.data.id] = event.type
            self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def registered(client: OpenAI, types: Sequence[str] = EVENTS) -> Iterator[dict[str, str]]:
    """Yield the events of some types, which come while the block runs."""
    with Inbox(client) as inbox:
        url = f"http://127.0.0.1:{inbox.server_port}/"
        for earlier in client.webhooks.list():
            if earlier.name == NAME:
                client.webhooks.delete(earlier.id)  # an interrupted run has left it
        endpoint = client.webhooks.create(name=NAME, url=url, event_types=list(types))
        inbox.secret = endpoint.signing_secret
        threading.Thread(target=inbox.serve_forever, daemon=True).start()
        try:
            yield inbox.events
        finally:
            client.webhooks.delete(endpoint.id)
            inbox.shutdown()


if __name__ == "__main__":
    with registered(OpenAI()) as events:
        while input("Press Enter to see what has come, Ctrl-C to end: ") == "":
            print(events)
