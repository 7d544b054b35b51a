"""How much a request may bring, and of which kind. Judged by its headers first, then counted as it arrives.

A `Content-Length` may lie and a chunked body has none, so bytes are counted too; a body that stops arriving is given
up, so that nobody holds a connection for ever with half a request.
"""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import respond
from jobs.errors import InvalidRequest, NightmillError, PayloadTooLarge, RequestTimeout, UnsupportedMedia
from jobs.settings import Settings

#: Boundaries, headers and the text fields around a file.
MULTIPART_SLACK = 65_536
#: No byte for so long: the body is given up.
IDLE_SECONDS = 60.0

_PART = re.compile(r"/v1/uploads/[^/]+/parts/?")
_NUL = (b"%00", b"\0")


class Limit:
    """Answers 400, 413 or 415 without reading, or lets the app read up to the route's limit."""

    def __init__(self, app: ASGIApp, config: Settings, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.app = app
        self.config = config
        self.idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            limit = self._judge(scope)
        except NightmillError as error:
            await respond(error)(scope, receive, send)
            return
        await self.app(scope, _Counted(receive, limit, self.idle_seconds), send)

    def _judge(self, scope: Scope) -> int:
        """The most bytes that this request's body may have. Raises the refusal."""
        if any(nul in part for nul in _NUL for part in (scope.get("raw_path") or b"", scope["query_string"])):
            raise InvalidRequest("The URL has a NUL character in it.", code="invalid_url")
        headers = Headers(scope=scope)
        multipart, limit = self._expected(scope["path"])
        length = _length(headers)
        if length > limit:
            raise PayloadTooLarge(f"The request has {length} bytes; {limit} is the most.")
        if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise UnsupportedMedia("Compressed request bodies are not accepted.", code="unsupported_encoding")
        if scope["method"] == "POST" and (length or "transfer-encoding" in headers):
            _check_type(headers.get("content-type", ""), multipart)
        return limit

    def _expected(self, path: str) -> tuple[bool, int]:
        """Whether a path takes a multipart form instead of JSON, and its limit."""
        if path.rstrip("/") == "/v1/files":
            return True, self.config.file_max_bytes + MULTIPART_SLACK
        if _PART.fullmatch(path):
            return True, self.config.part_max_bytes + MULTIPART_SLACK
        return False, self.config.body_max_bytes


class _Counted:
    """A `receive` that counts."""

    def __init__(self, receive: Receive, limit: int, idle_seconds: float) -> None:
        self._receive = receive
        self._left = limit
        self._idle = idle_seconds
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:  # what follows is only the news that the client has left, after hours of listening maybe
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


def _length(headers: Headers) -> int:
    values = headers.getlist("content-length")
    if len(set(values)) > 1 or not all(value.isascii() and value.isdigit() for value in values):
        raise InvalidRequest("The Content-Length header is not valid.", code="invalid_content_length")
    return int(values[0][:19]) if values else 0


def _check_type(given: str, multipart: bool) -> None:
    kind, _, rest = given.partition(";")
    kind = kind.strip().lower()
    wanted = "multipart/form-data" if multipart else "application/json"
    if kind != wanted and not (not multipart and kind.endswith("+json")):
        raise UnsupportedMedia(f"The Content-Type must be {wanted}.")
    charset = re.search(r"charset=\"?([\w-]+)", rest, re.IGNORECASE)
    if not multipart and charset and charset[1].lower().replace("-", "") not in ("utf8", "usascii"):
        raise UnsupportedMedia("JSON must be in UTF-8.")
