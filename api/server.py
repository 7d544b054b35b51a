"""The HTTP server: uvicorn, with a bound on what a request's head may be and on how long it may take.

uvicorn's httptools protocol bounds neither, so a few idle or endless heads would hold connections and memory for ever.
"""

import asyncio
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jobs.settings import Settings

#: A request's line and headers.
MAX_HEAD_BYTES = 65_536
HEAD_SECONDS = 20.0
_GRACE_SECONDS = 5
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when a request's head is too large or too slow."""

    _head_bytes = 0
    _in_head = True
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._clock = self.loop.call_later(HEAD_SECONDS, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._head_bytes, self._in_head = 0, True
        self._stop_clock()
        self._clock = self.loop.call_later(HEAD_SECONDS, self._close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class Server(uvicorn.Server):
    """Tells streams that live as long as their client to end when the process is told to stop."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._tell()
        super().handle_exit(sig, frame)


def server(app: FastAPI, config: Settings, **options: Any) -> Server:
    """A server of one process, ready to run."""
    settled = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=BoundedProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        proxy_headers=False,  # nobody stands in front unless someone is put there: addresses are the peers'
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        **options,
    )
    return Server(settled, app.state.services.stopping.set)
