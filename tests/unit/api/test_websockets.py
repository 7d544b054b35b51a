"""WebSockets on a real socket: handshakes that cannot be read, messages without end, clients that are gone."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from api.server import BoundedWebSocket, server
from jobs.timings import Timings
from tests.support.web import make_key, serve
from tests.unit.api.test_server import refusal, talk

PATH = "/v1/responses"
UPGRADE = (
    b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve(app) as url:
        yield url


def open_connection(app: FastAPI, url: str) -> AbstractContextManager[ClientConnection]:
    headers = {"Authorization": f"Bearer {make_key(app)}"}
    return connect(f"ws{url.removeprefix('http')}{PATH}", additional_headers=headers, compression="deflate")


def close_code_of(connection: ClientConnection) -> int | None:
    """Return the code with which the server closes a connection."""
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=30)
    return closed.value.rcvd.code if closed.value.rcvd else None


def test_a_message_is_answered_without_compression(app: FastAPI, url: str) -> None:
    with open_connection(app, url) as connection:
        connection.send("{}")

        assert json.loads(connection.recv(timeout=30))["error"]["code"] == "missing_required_parameter"
        assert connection.protocol.extensions == []


def test_a_refusal_is_no_error_of_the_server(url: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = talk(url, f"GET {PATH} HTTP/1.1\r\nAuthorization: Bearer nope\r\n".encode() + UPGRADE + b"\r\n")

    assert refusal(answer) == (401, "invalid_api_key")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_messages_that_do_not_wait_for_the_handshake_do_no_harm(
    app: FastAPI, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"GET {PATH} HTTP/1.1\r\nAuthorization: Bearer {make_key(app)}\r\n".encode() + UPGRADE + b"\r\n"
    host, _, port = url.removeprefix("http://").partition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=30) as connection, suppress(ConnectionError):
            connection.sendall(head)
            connection.sendall(b"\x81\x82\0\0\0\0{}" * 1000)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass

    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    with open_connection(app, url) as connection:
        connection.send("{}")
        assert connection.recv(timeout=30)


@pytest.mark.parametrize("head", [b"X: y\r\n" * 200, b"X: " + b"y" * 9000 + b"\r\n"])
def test_a_handshake_that_cannot_be_read_is_refused(url: str, head: bytes) -> None:
    answer = talk(url, f"GET {PATH} HTTP/1.1\r\n".encode() + UPGRADE + head + b"\r\n")

    assert refusal(answer) == (400, "invalid_http")


def test_the_upgrade_of_another_method_is_ignored(app: FastAPI, url: str) -> None:
    key = f"Authorization: Bearer {make_key(app)}\r\n\r\n".encode()

    answer = talk(url, f"DELETE {PATH} HTTP/1.1\r\n".encode() + UPGRADE + key, seconds=2)

    assert refusal(answer) == (405, "method_not_allowed")


def test_a_connection_opens_in_a_crowd(app: FastAPI, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.server.max_connections", lambda: 3)
    with open_connection(app, url) as first, open_connection(app, url) as second:
        for connection in (first, second):
            connection.send("{}")
            assert connection.recv(timeout=30)
        assert httpx2.get(f"{url}/livez", timeout=30).status_code == 200


@pytest.mark.parametrize("message", ["x" * 1025, [""] * 5000, ["x" * 300] * 4], ids=["long", "frames", "together"])
def test_a_message_that_is_too_large_ends_the_connection(make_app: Callable[..., FastAPI], message: Any) -> None:
    app = make_app(body_max_bytes=1024)
    with serve(app) as url, open_connection(app, url) as connection:
        with suppress(ConnectionClosed):
            connection.send(message)

        assert close_code_of(connection) == 1009
        assert httpx2.get(f"{url}/livez").status_code == 200


def test_messages_that_arrive_count_as_bodies_of_the_project(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(body_max_bytes=4096, project_body_bytes=4096)
    part = b"\x81\xfe" + (4000).to_bytes(2, "big") + bytes(4) + b" " * 3000  # of a frame with 4000 bytes
    with serve(app) as url, ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        waiting = {}
        for _ in range(2):
            connection = stack.enter_context(open_connection(app, url))
            connection.socket.sendall(part)
            waiting[pool.submit(connection.recv, 30)] = connection
        [[refused], [other]] = wait(waiting, return_when=FIRST_COMPLETED)
        waiting[other].socket.sendall(b" " * 1000)

        with pytest.raises(ConnectionClosed, match="1013"):
            refused.result()
        assert json.loads(other.result())["error"]["code"] == "invalid_json"
        with open_connection(app, url) as third:
            third.send(" " * 4000)
            assert json.loads(third.recv(timeout=30))["error"]["code"] == "invalid_json"


def test_unresponsive_client_is_disconnected(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(timings=replace(Timings(), connection_ping=0.1, connection_pong=0.2))
    head = f"GET {PATH} HTTP/1.1\r\nAuthorization: Bearer {make_key(app)}\r\n".encode() + UPGRADE + b"\r\n"
    with serve(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 101 ")
            with suppress(ConnectionResetError):
                while connection.recv(65_536):
                    pass


def test_the_end_of_the_process_closes_connections(app: FastAPI) -> None:
    with ExitStack() as stack:
        with serve(app) as url:
            connection = stack.enter_context(open_connection(app, url))

        assert close_code_of(connection) == 1001


def test_pongs_are_left_out_while_a_client_does_not_read(app: FastAPI) -> None:
    async def flood() -> int:
        config = server(app, app.state.services.config).config
        config.load()
        sent: list[bytes] = []
        protocol = BoundedWebSocket(config, ServerState(), {})
        protocol.transport = SimpleNamespace(write=sent.append)  # type: ignore[assignment]
        protocol.conn.state = State.OPEN
        protocol.pause_writing()
        for _ in range(100):
            protocol.conn.send_pong(b"x")
            protocol.handle_ping()
        assert sent == []
        protocol.resume_writing()
        protocol.conn.send_pong(b"x")
        protocol.handle_ping()
        return len(b"".join(sent))

    assert asyncio.run(flood()) == 3
