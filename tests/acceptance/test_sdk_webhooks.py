"""`client.webhooks`: management, and the signature that its `unwrap` verifies."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import openai
import pytest


@pytest.fixture
def receiver() -> Iterator[HTTPServer]:
    """Answers 200 and keeps what came, under `got`."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            got.append((headers, self.rfile.read(int(headers["content-length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got = got  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_endpoints_are_managed_by_the_sdk(sdk: openai.OpenAI, other_sdk: openai.OpenAI) -> None:
    made = sdk.webhooks.create(name="n", url="http://127.0.0.1:9/x", event_types=["batch.completed"])

    assert made.signing_secret.startswith("whsec_")
    assert sdk.webhooks.retrieve(made.id).name == "n"
    assert sdk.webhooks.update(made.id, name="m").name == "m"
    assert [one.id for one in sdk.webhooks.list()] == [made.id]
    assert list(other_sdk.webhooks.list()) == []
    with pytest.raises(openai.NotFoundError):
        other_sdk.webhooks.retrieve(made.id)
    assert sdk.webhooks.delete(made.id).deleted is True
    assert "batch.completed" in sdk.webhooks.event_types.list().data


def test_test_event_is_unwrapped_by_sdk(sdk: openai.OpenAI, receiver: HTTPServer) -> None:
    made = sdk.webhooks.create(
        name="n", url=f"http://127.0.0.1:{receiver.server_port}/x", event_types=["batch.completed"]
    )

    result = sdk.webhooks.test(made.id, event_type="batch.completed")

    assert (result.status_code, result.success) == (200, True)
    headers, body = receiver.got[0]  # type: ignore[attr-defined]
    event = sdk.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert event.type == "batch.completed"


def test_for_a_day_both_secrets_verify(sdk: openai.OpenAI, receiver: HTTPServer) -> None:
    made = sdk.webhooks.create(name="n", url=f"http://127.0.0.1:{receiver.server_port}/x", event_types=["batch.failed"])

    rotated = sdk.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    sdk.webhooks.test(made.id, event_type="batch.failed")

    headers, body = receiver.got[0]  # type: ignore[attr-defined]
    for secret in (made.signing_secret, rotated.signing_secret):
        assert sdk.webhooks.unwrap(body, headers, secret=secret).type == "batch.failed"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        sdk.webhooks.unwrap(body + b" ", headers, secret=made.signing_secret)
