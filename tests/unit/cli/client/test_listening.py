"""`webhooks listen` posts every event of the feed once, as a webhook is, over broken connections."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
from openai import OpenAI
from standardwebhooks import Webhook

from cli.client.listening import Forwarder, follow_events
from cli.client.server import Server, ServerUnavailable
from cli.errors import CliError
from cli.main import app as cli
from jobs.ledger import feed
from jobs.timings import Timings
from jobs.webhooks.sending import new_secret
from tests.support import worker_steps
from tests.support.web import hurry, make_key, running_app, serve
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import client_of

QUICK = Timings(follow_look=0.01, follow_patience=30.0)
EVENT = {
    "id": "evt_1", "object": "event", "created_at": 7, "type": "batch.completed", "data": {"id": "batch_1"},
    "position": 1, "subject_id": "batch_1", "seq": 4,
}  # fmt: skip
ROOT = Path(__file__).parents[4]


def streamed(*positions: int) -> bytes:
    """Return the answer of a server that sends these events and breaks off."""
    told = b"".join(
        b"id: %d\nevent: t\ndata: %b\n\n" % (n, json.dumps({**EVENT, "position": n}).encode()) for n in positions
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: hello\n\n" + told


@contextmanager
def answering(*answers: bytes, timings: Timings = QUICK) -> Iterator[tuple[Server, list[bytes]]]:
    """Yield a server that gives one answer to each connection and closes it, and the requests that it got."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    asked.append(connection.recv(1 << 16).split(b"\r\n")[0])
                    connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        with Server(f"http://127.0.0.1:{listening.getsockname()[1]}", "key", timings) as server:
            yield server, asked
        thread.join()


class Inbox:
    """A receiver of this machine: what was posted to it."""

    def __init__(self, status: int) -> None:
        self.posts: list[tuple[dict[str, str], bytes]] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                inbox.posts.append((headers, self.rfile.read(int(headers["content-length"]))))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}/hook"


@contextmanager
def inbox(status: int = 204) -> Iterator[Inbox]:
    made = Inbox(status)
    with made.server:
        threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True).start()
        yield made
        made.server.shutdown()


def test_a_stream_that_breaks_goes_on_behind_the_last_event() -> None:
    with answering(streamed(4, 5), streamed(), streamed(6)) as (server, asked):
        found = [event["position"] for event in islice(follow_events(server, 3), 3)]

    assert found == [4, 5, 6]
    assert asked == [b"GET /v1/events?after=%d HTTP/1.1" % n for n in (3, 5, 5)]


def test_unavailable_server_raises_after_patience_ends() -> None:
    with answering(streamed(4), b"", timings=Timings(follow_look=0.0, follow_patience=-1.0)) as (server, _):
        server.sdk = server.sdk.with_options(max_retries=0)
        events = follow_events(server, 3)
        next(events)
        with pytest.raises(ServerUnavailable):
            next(events)


def test_refusal_by_server_is_not_retried() -> None:
    gone = b"HTTP/1.1 410 Gone\r\nContent-Length: 44\r\n\r\n" + b'{"error": {"message": "They were removed."}}'
    with answering(gone) as (server, _), pytest.raises(CliError, match="They were removed"):
        next(follow_events(server, 3))


def test_an_event_is_posted_as_its_webhook_would_be() -> None:
    secret = new_secret()
    with inbox() as receiver:
        outcome = Forwarder(receiver.url, secret).post(EVENT)

    ((headers, body),) = receiver.posts
    assert (outcome.status_code, outcome.error) == (204, None)
    assert Webhook(secret).verify(body, headers) == {
        name: EVENT[name] for name in ("id", "object", "created_at", "type", "data")
    }
    assert (headers["webhook-id"], headers["nightmill-sequence"]) == ("evt_1", "4")
    unwrapped = OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=secret)
    assert (unwrapped.type, unwrapped.id) == ("batch.completed", "evt_1")


def test_receiver_failure_is_reported() -> None:
    with inbox(500) as receiver:
        refused = Forwarder(receiver.url, new_secret()).post(EVENT)
    away = Forwarder(receiver.url, new_secret()).post(EVENT)

    assert (refused.status_code, refused.error) == (500, "status 500")
    assert (away.status_code, away.error) == (None, "connection refused")


SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()  # the same in every process: it is in the names of tests


@pytest.mark.parametrize(("url", "secret"), [("ftp://x", SECRET), ("nonsense", SECRET), ("http://x", "s")])
def test_invalid_url_or_secret_is_refused_at_once(url: str, secret: str) -> None:
    with pytest.raises(CliError):
        Forwarder(url, secret)


def test_listen_command_forwards_only_signed_webhook_events(
    tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_app(tmp_path, sqlite_url) as app, inbox() as receiver:
        hurry(app, job_look=0.01)
        key, done = make_key(app), threading.Event()
        client = client_of(app, key)

        def work() -> None:
            """Batches end until the command has heard of one; the dispatcher would number their events."""
            while not done.wait(0.05):
                worker_steps.run(app.state.services.db, app.state.services.storage, create(client)["id"], 1)
                with app.state.services.db.write() as session:
                    feed.number(session)

        words = ["webhooks", "listen", "--forward-to", receiver.url, "--count", "2", "--api-key", key, "--url"]
        with serve(app) as url:
            worker = threading.Thread(target=work)
            worker.start()
            with pytest.raises(SystemExit) as ended:
                cli([*words, url])
            done.set()
            worker.join()

    out, err = capsys.readouterr()
    secret = err.split("signing secret: ")[1].split()[0]
    told = [Webhook(secret).verify(body, headers) for headers, body in receiver.posts]
    assert ended.value.code == 0
    assert [event["type"] for event in told] == ["batch.completed"] * 2  # and no job.created between
    assert [event["data"]["id"] for event in told] == [line.split()[3] for line in out.splitlines()]
    assert all(line.endswith(" -> status 204") for line in out.splitlines())
