"""The ASGI middleware before a request's body is read, from the outside in.

    Trace ─▶ Authenticate ─▶ Limit ─▶ FairShare ─▶ the app

It is pure ASGI, because middleware with `call_next` reads bodies and breaks streams. A request that is refused here
costs neither memory nor disk, however large its body is.

The request that opens a WebSocket passes the same layers, and is refused with the same answers. FairShare counts the
connection as a stream of its project until it is closed.
"""

import asyncio
import hashlib
import hmac
import re
import time
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import shares
from api.deps import Caller, Services
from api.errors import respond
from api.health.metrics import observe_request
from api.http import multipart
from api.http.access_log import log_request
from api.shares import ProjectBusy, RequestShare
from api.ttl_cache import Trusted
from jobs import logs
from jobs.errors import (
    InvalidRequest,
    NightmillError,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMedia,
)
from jobs.ids import new_id
from jobs.security.keys import authenticate, check_live, well_formed
from jobs.settings import Settings

_CONNECTIONS = frozenset({"http", "websocket"})
#: The messages that begin an answer; the second refuses a WebSocket.
_ANSWERS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
#: A client's own request id is used if it has this form.
_SANE = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_HEADER = b"x-request-id"


class Trace:
    """The outermost layer: request ids, metrics, the request id in logs, and the access log."""

    def __init__(self, app: ASGIApp, access_log: bool = True) -> None:
        self.app = app
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _CONNECTIONS:
            await self.app(scope, receive, send)
            return
        request_id = _client_request_id(scope) or new_id("req_")
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] in _ANSWERS:
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if maker := scope["state"].get("answer_maker"):  # of a tuned model, see `api.inference.interactive`
                    headers["x-nightmill-model"] = maker
                headers.update(scope["state"].get("rate_headers", {}))
                status = message.get("status", HTTPStatus.SWITCHING_PROTOCOLS.value)
                observe_request(scope, status, time.perf_counter() - began)
            await send(message)

        with logs.about(request_id=request_id):
            try:
                await self.app(scope, receive, answer)
            except Exception:  # answered outside of all middleware, see `api.errors`
                status = status or HTTPStatus.INTERNAL_SERVER_ERROR.value
                raise
            finally:
                if self.access_log:
                    log_request(scope, status, time.perf_counter() - began)


def _client_request_id(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == _HEADER]
    text = values[0].decode("latin-1") if len(values) == 1 else ""
    return text if _SANE.fullmatch(text) else None


_METRICS = "/metrics"
#: A proxy adds one of these headers: then the peer's address says nothing about the client.
_FORWARDED = re.compile(rb"forwarded|x-forwarded-.*|x-real-ip|via")
#: Served without a key, like the pages: they tell nothing about a project. The metrics have a key of their own.
OPEN = frozenset({"/livez", "/readyz", "/statusz", _METRICS, "/openapi.json"})


class Authenticate:
    """Put a `Caller` into the request's state, or answer 401 or 429.

    No key is asked for at `open_paths`, and at those that begin with `open_below`.
    """

    def __init__(
        self, app: ASGIApp, services: Services, open_paths: frozenset[str] = OPEN, open_below: str = ""
    ) -> None:
        self.app = app
        self.services = services
        self._open = open_paths
        self._open_below = open_below
        self._trusted = Trusted[Caller](services.timings.trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in _CONNECTIONS:
            try:
                if scope["path"] == _METRICS:
                    self._check_metrics_key(scope)
                elif not self._is_open(scope["path"]):
                    scope["state"]["caller"] = await self._caller(scope)
            except NightmillError as error:
                await respond(error, _challenge(error))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open or bool(self._open_below and f"{path}/".startswith(self._open_below))

    async def _caller(self, scope: Scope) -> Caller:
        key = _bearer(scope)
        error = Unauthenticated()
        if well_formed(key):
            try:
                caller = await self._trusted.get(hashlib.sha256(key.encode()).digest(), partial(self._look_up, key))
                self.services.key_use.note(caller.key_id)
                return caller
            except Unauthenticated as refused:
                error = refused
        raise self._refusal(scope, error)

    def _check_metrics_key(self, scope: Scope) -> None:
        """Refuse a request without the key of NIGHTMILL_METRICS_KEY; where none is set, all from other hosts.

        Raises: NotFound, Unauthenticated, TooManyRequests.
        """
        metrics_key = self.services.config.metrics_key
        if not metrics_key:
            if not _is_local(scope):
                raise NotFound("Other hosts get metrics with a key: set NIGHTMILL_METRICS_KEY.", code="metrics_local")
        elif not hmac.compare_digest(_bearer(scope).encode("latin-1"), metrics_key.encode()):
            raise self._refusal(scope, Unauthenticated())

    def _look_up(self, key: str) -> Caller:
        with self.services.db.read() as session:
            current = check_live(authenticate(session, key))
            return Caller(current.row.id, current.row.project_id, current.row.is_admin, current.permissions)

    def _refusal(self, scope: Scope, error: Unauthenticated) -> NightmillError:
        try:
            self.services.wrong_keys.count(scope)
        except TooManyRequests as too_many:
            return too_many
        return error


def _is_local(scope: Scope) -> bool:
    """Return whether the client is on this host, as far as can be known: the peer is, and no proxy."""
    if any(_FORWARDED.fullmatch(name) for name, _ in scope["headers"]):
        return False
    host, _ = scope.get("client") or ("", 0)
    try:
        address = ip_address(host)
    except ValueError:  # a Unix socket, behind which is a proxy
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _bearer(scope: Scope) -> str:
    """Return the bearer token.

    Raises: Unauthenticated, also for more than one header.
    """
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise Unauthenticated(
            "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer YOUR_KEY'.",
            code="missing_api_key",
        )
    text: str = values[0].decode("latin-1").strip()
    scheme, _, key = text.partition(" ")
    if len(values) != 1 or scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("The Authorization header must be 'Bearer YOUR_KEY'.")
    return key.strip()


def _challenge(error: NightmillError) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}


#: Bytes of boundaries, headers and text fields around a file.
MULTIPART_SLACK = 65_536

#: Takes a one-time token instead of a key.
SIGN_IN = "/console/session"
_SIGN_IN_BYTES = 4096
_PART = re.compile(r"/v1/uploads/[^/]+/parts/?")
_NUL = (b"%00", b"\0")


class BodyLimit:
    """Answer 400, 413 or 415 without reading the body, or let the app read up to the route's limit."""

    def __init__(self, app: ASGIApp, config: Settings, *, idle_seconds: float) -> None:
        self.app = app
        self.config = config
        self.idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _CONNECTIONS:
            await self.app(scope, receive, send)
            return
        try:
            _check_url(scope)
            if scope["type"] == "http":
                receive = _Counted(receive, self._judge(scope), self.idle_seconds)
        except NightmillError as error:
            await respond(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _judge(self, scope: Scope) -> int:
        """Return the maximum bytes of this request's body. Raises the refusal."""
        headers = Headers(scope=scope)
        is_form, limit = self._form_and_limit(scope["path"])
        length = _length(headers)
        if length > limit:
            raise PayloadTooLarge(f"The request has {length} bytes; {limit} is the most.")
        if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise UnsupportedMedia("Compressed request bodies are not accepted.", code="unsupported_encoding")
        if scope["method"] == "POST" and (length or "transfer-encoding" in headers):
            try:
                _check_type(headers.get("content-type", ""), is_form)
            except UnsupportedMedia:
                if _is_served(scope):  # otherwise the router answers 404 or 405
                    raise
        return limit

    def _form_and_limit(self, path: str) -> tuple[bool, int]:
        """Return whether a path takes a multipart form instead of JSON, and its limit in bytes."""
        if path.rstrip("/") == "/v1/files":
            return True, self.config.file_max_bytes + MULTIPART_SLACK
        if _PART.fullmatch(path):
            return True, multipart.MAX_PART_BYTES + MULTIPART_SLACK
        if path == SIGN_IN:
            return False, _SIGN_IN_BYTES
        return False, self.config.body_max_bytes


class _Counted:
    """A `receive` that counts bytes and limits the pauses between them."""

    def __init__(self, receive: Receive, limit: int, idle_seconds: float) -> None:
        self._receive = receive
        self._left = limit
        self._idle = idle_seconds
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:  # only a disconnect follows, maybe after hours of a stream
            return await self._receive()
        try:
            async with asyncio.timeout(self._idle):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        self._left -= len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._left < 0:
            raise PayloadTooLarge
        return message


def _check_url(scope: Scope) -> None:
    """Refuse a URL with a NUL character, and one that serves no WebSocket to a request for one.

    Raises: InvalidRequest, NotFound.
    """
    if any(nul in part for nul in _NUL for part in (scope.get("raw_path") or b"", scope["query_string"])):
        raise InvalidRequest("The URL has a NUL character in it.", code="invalid_url")
    if scope["type"] == "websocket" and not _is_served(scope):
        raise NotFound(f"Invalid URL (WebSocket {scope['path']})", code="unknown_url")


def _is_served(scope: Scope) -> bool:
    """Return whether a route takes the path and the method of a request."""
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)


def _length(headers: Headers) -> int:
    values = headers.getlist("content-length")
    if len(set(values)) > 1 or not all(value.isascii() and value.isdigit() for value in values):
        raise InvalidRequest("The Content-Length header is not valid.", code="invalid_content_length")
    return int(values[0][:19]) if values else 0


def _check_type(given: str, multipart: bool) -> None:
    kind, _, rest = given.partition(";")
    kind = kind.strip().lower()
    expected = "multipart/form-data" if multipart else "application/json"
    if kind != expected and not (not multipart and kind.endswith("+json")):
        raise UnsupportedMedia(f"The Content-Type must be {expected}.")
    charset = re.search(r"charset=\"?([\w-]+)", rest, re.IGNORECASE)
    if not multipart and charset and charset[1].lower().replace("-", "") not in ("utf8", "usascii"):
        raise UnsupportedMedia("JSON must be in UTF-8.")


class FairShare:
    """Answer 429 when the bodies of the project's requests in progress are too large together.

    A WebSocket takes one of the project's streams instead.
    """

    def __init__(self, app: ASGIApp, config: Settings, patience: float) -> None:
        self.app = app
        self.config = config
        self.patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["state"].get("caller") if scope["type"] in _CONNECTIONS else None
        if caller is None:
            await self.app(scope, receive, send)
            return
        usage = RequestShare(shares.share_of(caller.project_id, self.config, self.patience))
        token = shares.current.set(usage)
        try:
            await self.app(scope, _admit(scope, receive, usage), send)
        except ProjectBusy as error:
            await respond(error)(scope, receive, send)
        finally:
            usage.release()
            shares.current.reset(token)


def _admit(scope: Scope, receive: Receive, usage: RequestShare) -> Receive:
    """Return the `receive` of a request whose announced bytes are reserved, or which is counted as a stream.

    The server takes the share of a WebSocket from the state, and reserves in it what arrives.

    Raises: ProjectBusy.
    """
    if scope["type"] == "websocket":
        usage.open_stream()
        scope["state"]["share"] = usage.share
        return receive
    headers = Headers(scope=scope)
    files = headers.get("content-type", "").startswith("multipart/")
    return receive if files else _Body(receive, usage, int(headers.get("content-length", 0)))


class _Body:
    """A `receive` that reserves the bytes it passes on, first the announced ones. Raises ProjectBusy."""

    def __init__(self, receive: Receive, usage: RequestShare, announced: int) -> None:
        usage.reserve(announced)
        self._receive = receive
        self._usage = usage
        self._left = announced

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._usage.reserve(-self._left)
            self._left = 0
        return message
