"""The HTTP server: uvicorn, with limits on the size and the duration of a request's head.

uvicorn's httptools protocol bounds neither, so a few idle or endless heads would hold connections and memory for ever.
Nor does it bound trailers, which follow a chunked body: they are dropped, and refused where they are too large.
Invalid HTTP and oversized heads are refused in the shape that every other error has.

Each connection takes a descriptor, and the number of descriptors of a process is limited. Before they run out, the
server closes the connections that have waited longest for a request, so that clients that send requests are answered
however many others are idle. A connection with an unread request is not closed. While many connections are open, each
is closed after its answer, which announces it, so that no client sends its next request at that moment.

A process that is told to stop finishes what it answers:

    signal ──▶ notice: /readyz is 503, each answer closes its connection ──▶ no new connections ──▶ all answered: end
                                                                              └── time is over: what lasts is ended

A request to upgrade to WebSocket leaves the connection to `BoundedWebSocket`, which bounds what uvicorn does not. A
message is as large as a body may be.
"""

import asyncio
import math
import resource
import select
import socket
from http import HTTPStatus
from itertools import islice
from types import FrameType
from typing import Any, ClassVar

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from api.deps import Services
from api.errors import respond
from api.shares import ProjectBusy, RequestShare
from jobs.errors import InvalidRequest, NightmillError
from jobs.settings import Settings

#: A request's line and headers; and its trailers.
MAX_HEAD_BYTES = 65_536
#: Seconds in which streams that are ended send their last event.
_GRACE_SECONDS = 5
_TICK_SECONDS = 0.1
#: Seconds for which the rest of what is refused is read: a connection closed at once might lose the answer.
_LINGER_SECONDS = 2.0
#: File descriptors that a process requests, if the machine allows it.
_DESCRIPTORS = 65_536
#: Connections that are checked for unread data before one is closed for another.
_LOOKED_AT = 256
#: Frames of one message on a WebSocket: empty ones take memory and do not count for its size.
_MAX_FRAMES = 4096


class HeadTooLarge(NightmillError):
    """A request with too many bytes of headers."""

    text = "The headers of the request are too large."
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    type = "invalid_request_error"
    code = "request_head_too_large"


class BoundedProtocol(HttpToolsProtocol):
    """A connection with limits on the size and the time of a request's head.

    The connection is closed when a head exceeds them, or when another connection needs its slot.
    """

    #: Connections without a next request, or with a refused one, the longest first.
    _waiting: ClassVar[dict["BoundedProtocol", None]] = {}

    _bytes = 0  # bytes of a head, of trailers or of chunk framing since the head or its last body began
    _piece = 0
    _in_head = True
    _complete = False
    _refused = False
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock(self._head_patience)
        self._waiting[self] = None
        if len(self.connections) > max_connections():
            longest = self._longest()
            del self._waiting[longest]
            longest._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.pop(self, None)
        self._stop_clock()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._bytes, self._in_head, self._complete = self._piece, True, False
        self._start_clock(self._head_patience)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # later ones would be taken for headers of the head
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._bytes, self._in_head = 0, False
        self._stop_clock()
        self._waiting.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._complete = True
        is_last = len(self.connections) > max_connections() // 2 or self._services.draining.is_set()
        if is_last and not self._should_upgrade() and not self.cycle.response_started:
            self.cycle.keep_alive = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        self._waiting[self] = None
        if self.cycle.more_body:  # the rest of the body resets uvicorn's own timer
            self._start_clock(self._head_patience)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._piece = len(data)
        self._bytes += self._piece
        super().data_received(data)
        if self._bytes > MAX_HEAD_BYTES and not self._complete:
            self._refuse(HeadTooLarge())

    def _should_upgrade(self) -> bool:
        """Return whether the request is a WebSocket's; otherwise its `Upgrade` is ignored, as RFC 9110 allows."""
        return self.scope["method"] == "GET" and self.url.isascii() and super()._should_upgrade()

    def shutdown(self) -> None:
        """End the connection after its answer; one with an unread request is answered first."""
        if not self._has_sent():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser cannot read, or that two parsers could read differently."""
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def _refuse(self, error: NightmillError) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        earlier = getattr(self, "cycle", None)  # None before the first request
        if earlier is not None and not earlier.response_complete:
            earlier.disconnected = True
            earlier.message_event.set()
            if earlier.response_started:
                self.transport.close()
                return
        answered = earlier is not None and earlier.response_complete and not (self._in_head or self._complete)
        if not answered:
            self.transport.write(_raw(respond(error, {"connection": "close"})))
        self.transport.write_eof()
        self._start_clock(_LINGER_SECONDS)

    @property
    def _services(self) -> Services:
        app: Any = self.app
        services: Services = app.state.services
        return services

    @property
    def _head_patience(self) -> float:
        return self._services.timings.head_patience

    def _longest(self) -> "BoundedProtocol":
        """Return the connection to close: the longest idle one without unread data, or the longest idle one."""
        silent = (connection for connection in islice(self._waiting, _LOOKED_AT) if not connection._has_sent())
        return next(silent, next(iter(self._waiting)))

    def _has_sent(self) -> bool:
        if self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _start_clock(self, seconds: float) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(seconds, self._close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket with limits on the frames of a message, on unsent pongs, and on the time of a client that is gone.

    The bytes of messages that have not arrived whole are reserved in the share of the project.
    """

    _arriving: RequestShare | None = None

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:  # a client has to wait until its key is checked
            self.transport.abort()
            return
        super().data_received(data)
        try:
            self._reserve(len(self.conn.reader.buffer) + sum(map(len, self.frames)))
        except ProjectBusy:
            self._fail(CloseCode.TRY_AGAIN_LATER, "too many bytes of this project")
        if not self.handshake_initiated:  # the first data is the whole head, which `websockets` could not read
            error = InvalidRequest("Invalid WebSocket handshake.", code="invalid_http")
            self.transport.write(_raw(respond(error, {"connection": "close"})))
            self.transport.close()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # uvicorn would log each refusal as an error of the app

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < _MAX_FRAMES:
            super().handle_cont(event)
        elif not self.close_sent:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many frames")

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # the client does not read
            self.conn.data_to_send()

    def shutdown(self) -> None:
        """Have a connection whose server stops closed by the app, once what is asked on it is answered."""
        leave = self.scope["state"].get("leave") if self.handshake_complete and not self.close_sent else None
        if leave is not None:
            leave.set()
        else:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # what a client does not read would keep the connection open

    def handle_parser_exception(self) -> None:
        """End the connection after a time in which the rest is read: at once, a client might not see why."""
        if self.close_sent:
            return
        close = self.conn.close_sent
        assert close is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.write_eof()
        self.close_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reserve(0)
        super().connection_lost(exc)

    def _reserve(self, size: int) -> None:
        """Have `size` bytes reserved in the share of the project. Raises ProjectBusy."""
        if self._arriving is not None:
            self._arriving.release()
            self._arriving = None
        if size and not self.close_sent:
            self._arriving = RequestShare(self.scope["state"]["share"])
            self._arriving.reserve(size)

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()


def max_connections() -> int:
    """Return half of the descriptors; the others are for the database, files and streams."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit) // 2


def _ask_for_descriptors() -> None:
    limit, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _DESCRIPTORS if allowed == resource.RLIM_INFINITY else min(_DESCRIPTORS, allowed)
    if limit != resource.RLIM_INFINITY and limit < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, allowed))


def _raw(answer: JSONResponse) -> bytes:
    """Return an answer as bytes, for a connection without a request."""
    status = HTTPStatus(answer.status_code)
    headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() + headers + b"\r\n" + bytes(answer.body)


class Server(uvicorn.Server):
    """A server that finishes its answers when the process is told to stop, and ends them when it takes too long.

    A second SIGINT ends the process at once. A second SIGTERM does not: systemd sends one beside the supervisor's.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self.services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.services.draining.set()
        super().handle_exit(sig, frame)
        if self.force_exit:
            self.services.stopping.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.services.draining.set()
        config, loop = self.services.config, asyncio.get_running_loop()
        until = loop.time() + config.shutdown_seconds
        ending = loop.call_at(until, self.services.stopping.set)
        noticed = loop.time() + config.shutdown_notice_seconds
        while loop.time() < min(noticed, until) and not self.services.stopping.is_set():  # noqa: ASYNC110 (by a signal)
            await asyncio.sleep(_TICK_SECONDS)
        self.config.timeout_graceful_shutdown = math.ceil(until - loop.time()) + _GRACE_SECONDS
        await super().shutdown(sockets)
        ending.cancel()


def server(app: FastAPI, config: Settings, **options: Any) -> Server:
    """Return the server of one process, ready to run, and request file descriptors."""
    _ask_for_descriptors()
    settled = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=BoundedProtocol,
        ws=BoundedWebSocket,
        ws_max_size=config.body_max_bytes,
        ws_ping_interval=app.state.services.timings.connection_ping,
        ws_ping_timeout=app.state.services.timings.connection_pong,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
        proxy_headers=False,  # without a proxy in front, addresses are those of the peers
        server_header=False,
        timeout_keep_alive=15,
        **options,
    )
    return Server(settled, app.state.services)
