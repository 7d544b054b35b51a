"""Downloads: of a client that does not read the server holds little, and a project has a bounded number of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.web import make_key
from tests.unit.api.conftest import client_of
from tests.unit.api.files.test_files import upload

SIZE = 3 << 20


class Slow:
    """A download whose client reads nothing: its second piece is never accepted."""

    def __init__(self, app: FastAPI, key: str, path: str) -> None:
        self._app = app
        self.status, self.pieces, self.headers = 0, list[int](), dict[bytes, bytes]()
        self._is_full, self._reads = asyncio.Event(), asyncio.Event()
        headers = [(b"authorization", f"Bearer {key}".encode()), (b"host", b"test")]
        self._scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": headers}
        self._scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1)}

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["Slow"]:
        """Yield when the client has been sent as much as it takes, or the whole answer."""
        task = asyncio.create_task(self._app({**self._scope, "state": {}}, self._receive, self._send))
        full = asyncio.create_task(self._is_full.wait())
        await asyncio.wait((task, full), return_when=asyncio.FIRST_COMPLETED)
        yield self
        self._reads.set()
        full.cancel()
        await task

    async def _receive(self) -> dict[str, Any]:
        await self._reads.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message.get("body"):
            self.pieces.append(len(message["body"]))
            if len(self.pieces) == 2 and self.status == 200:
                self._is_full.set()
                await self._reads.wait()


def _stored(app: FastAPI, key: str) -> str:
    answer: httpx2.Response = upload(client_of(app, key), bytes(SIZE))
    return f"/v1/files/{answer.json()['id']}/content"


def test_of_a_client_that_does_not_read_the_server_holds_two_small_pieces(app: FastAPI) -> None:
    key = make_key(app)
    path = _stored(app, key)

    async def work() -> list[int]:
        async with Slow(app, key, path).begin() as download:
            return list(download.pieces)

    pieces = asyncio.run(work())

    assert len(pieces) == 2
    assert sum(pieces) <= 256 << 10


def test_a_project_has_a_bounded_number_of_downloads(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_streams=2)
    key, other = make_key(app), make_key(app, "another")
    path, others = _stored(app, key), _stored(app, other)

    async def work() -> list[Slow]:
        async with AsyncExitStack() as stack:
            wanted = [(key, path), (key, path), (key, path), (other, others)]
            downloads = [await stack.enter_async_context(Slow(app, *one).begin()) for one in wanted]
        async with Slow(app, key, path).begin() as later:
            return [*downloads, later]

    downloads = asyncio.run(work())

    assert [download.status for download in downloads] == [200, 200, 429, 200, 200]
    assert downloads[2].headers[b"retry-after"] == b"1"


def test_a_download_has_every_byte(client: TestClient) -> None:
    data = bytes(range(256)) * 3000
    file_id = upload(client, data).json()["id"]

    assert client.get(f"/v1/files/{file_id}/content").content == data
