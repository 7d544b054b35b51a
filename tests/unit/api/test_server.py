"""The server on a real socket: heads that are too large or too slow, and what is answered while the process ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from api.server import Server, server
from jobs.timings import Timings
from tests.support import worker_steps
from tests.support.system import eventually
from tests.support.web import hurry, make_key, serve, served

SSE = {"Accept": "text/event-stream"}
READY = """
import gc
from types import SimpleNamespace
from api import __main__ as web

web.claim_host = lambda _: None
web.server = lambda *_: SimpleNamespace(run=lambda: print(gc.get_freeze_count() > 10_000))
web.main()
"""


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve(app) as url:
        yield url


def talk(url: str, data: bytes, seconds: float = 10) -> bytes:
    """Send raw bytes; what comes back until the server closes or nothing comes for a while."""
    host, _, port = url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(65_536):
                answer += piece
        except (TimeoutError, ConnectionError):
            pass
    return answer


def accepts(url: str) -> bool:
    """Return whether the server takes a connection."""
    try:
        httpx2.get(f"{url}/livez", timeout=30)
    except httpx2.HTTPError:
        return False
    return True


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer in OpenAI's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split(b" ")[1]), error["code"]


def test_a_head_without_end_is_refused(url: str) -> None:
    answer = talk(url, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Filler: " + b"x" * 300_000)

    assert refusal(answer) == (431, "request_head_too_large")
    assert httpx2.get(f"{url}/livez").status_code == 200


CHUNKED = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize("trailers", [b"X: y\r\n" * 100_000, b"X: " + b"y" * 600_000])
def test_trailers_without_end_are_refused(app: FastAPI, url: str, trailers: bytes) -> None:
    head = CHUNKED + f"Authorization: Bearer {make_key(app)}\r\n".encode()

    answer = talk(url, head + b"\r\n1\r\na\r\n0\r\n" + trailers, seconds=5)

    assert refusal(answer) == (431, "request_head_too_large")


def test_trailers_that_come_after_the_answer_end_the_connection(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(CHUNKED + b"\r\n1\r\na\r\n0\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")

        connection.sendall(b"X: y\r\n" * 20_000)
        assert connection.recv(65_536) == b""


def test_trailers_are_no_headers(app: FastAPI, url: str) -> None:
    body = b'{"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}'
    head = CHUNKED + f"Authorization: Bearer {make_key(app)}\r\nConnection: close\r\n\r\n".encode()
    sent = head + b"%x\r\n%s\r\n0\r\n" % (len(body), body) + b"Idempotency-Key: " + b"k" * 300 + b"\r\n\r\n"

    assert talk(url, sent).startswith(b"HTTP/1.1 200 ")


def test_client_answered_before_body_end_is_disconnected_after_timeout(app: FastAPI, url: str) -> None:
    hurry(app, head_patience=0.5)
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(CHUNKED + b"\r\n1\r\na\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")

        connection.sendall(b"1\r\na\r\n")
        assert connection.recv(65_536) == b""


def test_a_large_body_in_chunks_is_no_head(app: FastAPI, url: str) -> None:
    head = CHUNKED + f"Authorization: Bearer {make_key(app)}\r\nConnection: close\r\n\r\n".encode()
    body = b'{"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"%s}' % (b" " * 900_000)
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(body[n : n + 300_000]), body[n : n + 300_000]) for n in range(0, len(body), 300_000)
    )

    assert talk(url, head + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_nonsense_behind_a_request_ends_both_without_a_crash(
    app: FastAPI, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"Host: x\r\nAuthorization: Bearer {make_key(app)}\r\n"
    body = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"

    answers = [
        talk(url, f"GET /v1/files HTTP/1.1\r\n{head}\r\n\x16\x03 nonsense\r\n\r\n".encode()),
        talk(url, f"POST /v1/batches HTTP/1.1\r\n{head}{body}".encode()),
    ]

    assert [refusal(answer) for answer in answers] == [(400, "invalid_http")] * 2
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_head_that_does_not_come_is_given_up(app: FastAPI, url: str) -> None:
    hurry(app, head_patience=0.3)
    began = time.monotonic()

    talk(url, b"GET /livez HTTP/1.1\r\nHost: x\r\n", seconds=20)
    silent = time.monotonic() - began

    assert silent < 10


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
def test_oldest_idle_connections_are_closed_for_new_connections(
    url: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("api.server.max_connections", lambda: 8)
    host, _, port = url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        idle = []
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            connection.sendall(sent)
            idle.append(connection)

        assert httpx2.get(f"{url}/livez", timeout=30).status_code == 200
        for connection in idle[:12]:
            assert connection.recv(1) == b"", "closed"
        idle[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)


def test_in_a_crowd_a_connection_ends_with_its_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.server.max_connections", lambda: 8)
    host, _, port = url.removeprefix("http://").partition(":")
    with ExitStack() as stack, httpx2.Client() as client:
        assert "connection" not in client.get(f"{url}/livez").headers
        for _ in range(5):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))

        eventually(lambda: client.get(f"{url}/livez").headers.get("connection") == "close", 10, "they are a crowd")


def test_connection_with_unread_request_is_not_closed_for_new_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    ask = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        one, other = (stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(2))
        for connection in (one, other):
            connection.sendall(ask)
            assert connection.recv(65_536)

        unsent = [ask]

        def most() -> int:  # asked by the server's own loop, so that this request is not read before
            if unsent:
                one.sendall(unsent.pop())
            return 2

        monkeypatch.setattr("api.server.max_connections", most)
        stack.enter_context(socket.create_connection((host, int(port)), timeout=30))

        assert one.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert other.recv(1) == b"", "closed"


def test_connection_with_active_response_is_not_closed_for_new_connections(
    app: FastAPI, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.server.max_connections", lambda: 2)
    db, storage = app.state.services.db, app.state.services.storage
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {make_key(app)}"}, timeout=30) as client:
        body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}
        job_id = client.post("/v1/batches", json=body).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=SSE) as events:
            told = events.iter_lines()
            assert next(told).startswith(":")
            for _ in range(6):
                assert httpx2.get(f"{url}/livez", timeout=30).status_code == 200
            worker_steps.plan(db, job_id, 1)
            worker_steps.answer(db, storage, worker_steps.take(db, job_id), [0], last=True)
            worker_steps.finish(db, storage, job_id, range(1))
            kinds = [line for line in told if line.startswith("event: ")]

    assert kinds[-1] == "event: batch.completed"


def test_a_body_that_does_not_come_is_408(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(timings=replace(Timings(), body_patience=0.3))
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {make_key(app)}\r\n"
    with serve(app) as url:
        answer = talk(
            url, head.encode() + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", 3
        )

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -5\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
    ],
)
def test_heads_that_two_servers_could_read_differently_are_refused(app: FastAPI, url: str, head: bytes) -> None:
    start = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {make_key(app)}\r\n".encode()

    answer = talk(url, start + b"Content-Type: application/json\r\n" + head + b"\r\n0\r\n\r\nGET /livez", seconds=2)

    assert refusal(answer) == (400, "invalid_http")


def test_invalid_http_of_any_length_is_refused_once(url: str) -> None:
    answer = talk(url, b"\x16\x03\x01 nonsense\r\n\r\n" * 50_000)

    assert refusal(answer) == (400, "invalid_http")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert httpx2.get(f"{url}/livez").status_code == 200


def test_a_large_file_without_a_key_is_401_and_takes_no_disk(app: FastAPI, url: str, tmp_path: Path) -> None:
    with httpx2.Client(base_url=url) as client:
        answer = client.post("/v1/files", files={"file": ("a", b"x" * (64 << 20))}, data={"purpose": "batch"})
        after = client.get("/livez")

    assert (answer.status_code, after.status_code) == (401, 200)
    assert not (tmp_path / "files").exists()


def test_an_upload_that_is_cut_leaves_nothing(app: FastAPI, url: str, tmp_path: Path) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {make_key(app)}\r\nIdempotency-Key: k\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 10000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"x" * 5_000_000)

    key = make_key(app)
    pause, deadline = threading.Event(), time.monotonic() + 20
    while time.monotonic() < deadline and any(path.is_file() for path in (tmp_path / "files").rglob("*")):
        pause.wait(0.05)
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "k"}) as client:
        again = client.post("/v1/files", files={"file": ("a", b"x")}, data={"purpose": "batch"})

    assert [path for path in (tmp_path / "files").rglob("*.partial-*") if path.is_file()] == []
    assert again.status_code == 200


def test_results_and_events_arrive_while_the_job_runs(app: FastAPI, url: str) -> None:
    db, storage = app.state.services.db, app.state.services.storage
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {make_key(app)}"}, timeout=30) as client:
        body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}
        job_id = client.post("/v1/batches", json=body).json()["id"]
        worker_steps.plan(db, job_id, 3)
        claim = worker_steps.take(db, job_id)
        worker_steps.answer(db, storage, claim, [1])
        with client.stream("GET", f"/v1/jobs/{job_id}/results") as results:
            lines = results.iter_lines()
            first = json.loads(next(lines))["custom_id"]
            with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={**SSE, "Last-Event-ID": "2"}) as events:
                told = events.iter_lines()
                assert next(told).startswith(":")
                worker_steps.answer(db, storage, claim, [0, 2], seq=1, last=True)
                worker_steps.finish(db, storage, job_id, range(3))
                kinds = [line for line in told if line.startswith("event: ")]
            rest = [json.loads(line)["custom_id"] for line in lines]

    assert (first, rest) == ("c1", ["c0", "c2"])
    assert kinds == ["event: job.finishing", "event: batch.completed"]


def test_open_streams_do_not_hold_up_the_end_of_the_process(app: FastAPI) -> None:
    with serve(app) as url:
        headers = {"Authorization": f"Bearer {make_key(app)}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=30) as client:
            body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}
            job_id = client.post("/v1/batches", json=body).json()["id"]
            with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=SSE) as events:
                lines = events.iter_lines()
                next(lines)
                app.state.services.draining.set()
                rest = list(lines)

    assert rest[-1] == ""


def test_sigterm_drains_process_and_following_sigint_stops_responses(app: FastAPI) -> None:
    services = app.state.services
    web = server(app, services.config)

    for _ in range(2):  # of systemd and of the supervisor
        web.handle_exit(signal.SIGTERM, None)
    first = services.draining.is_set(), services.stopping.is_set(), web.should_exit
    web.handle_exit(signal.SIGINT, None)

    assert first == (True, False, True)
    assert services.stopping.is_set()


class Slow:
    """A route that answers `GET /slow` when it may, or when the process ends what is being answered."""

    def __init__(self, app: FastAPI) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self._headers = {"Authorization": f"Bearer {make_key(app)}"}
        services = app.state.services

        @app.get("/slow")
        async def slow() -> dict[str, bool]:
            self.asked.set()
            while not (self.may_answer.is_set() or services.stopping.is_set()):  # noqa: ASYNC110 (by other threads)
                await asyncio.sleep(0.01)
            return {"whole": self.may_answer.is_set()}

    def ask(self, url: str) -> dict[str, bool]:
        """Return the answer."""
        answer: dict[str, bool] = httpx2.get(f"{url}/slow", headers=self._headers, timeout=60).raise_for_status().json()
        return answer


@pytest.fixture
def draining(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., tuple[Server, str, Slow]]]:
    """Return a function that starts a server with the given settings and the route `/slow`."""
    with ExitStack() as stack:

        def start(**settings: float) -> tuple[Server, str, Slow]:
            app = make_app(**settings)
            slow, web = Slow(app), server(app, app.state.services.config)
            return web, stack.enter_context(served(web)), slow

        yield start


def test_an_answer_in_progress_is_finished_while_the_process_takes_no_more_requests(
    draining: Callable[..., tuple[Server, str, Slow]],
) -> None:
    web, url, slow = draining(shutdown_seconds=600)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.ask, url)
        assert slow.asked.wait(30)
        web.handle_exit(signal.SIGTERM, None)
        eventually(lambda: not accepts(url), 30, "nobody is let in")
        assert not asked.done()
        slow.may_answer.set()

        assert asked.result(60) == {"whole": True}


def test_an_answer_that_takes_too_long_is_ended_with_the_process(
    draining: Callable[..., tuple[Server, str, Slow]],
) -> None:
    web, url, slow = draining(shutdown_seconds=0.5)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.ask, url)
        assert slow.asked.wait(30)
        web.handle_exit(signal.SIGTERM, None)

        assert asked.result(60) == {"whole": False}


def test_a_load_balancer_has_time_to_leave_a_process_that_stops(
    draining: Callable[..., tuple[Server, str, Slow]],
) -> None:
    web, url, _ = draining(shutdown_seconds=600, shutdown_notice_seconds=600)
    with httpx2.Client(base_url=url, timeout=30) as client:
        before = client.get("/readyz")
        web.handle_exit(signal.SIGTERM, None)
        told = client.get("/readyz")
    late = httpx2.get(f"{url}/livez", timeout=30)
    web.handle_exit(signal.SIGINT, None)
    eventually(lambda: not accepts(url), 30, "a second signal ends the notice")

    assert (before.status_code, before.headers.get("connection")) == (200, None)
    assert (told.status_code, told.headers["connection"]) == (503, "close")
    assert late.status_code == 200


def test_loaded_objects_are_frozen_for_garbage_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))

    told = subprocess.run([sys.executable, "-c", READY], capture_output=True, text=True, timeout=60, check=True)

    assert told.stdout == "True\n"
