"""Give each request the share of its project: see `api.shares`.

The bytes of a JSON body are reserved by its Content-Length before it is read, those of a chunked one as they arrive,
until the request is answered. Files are not counted: they go to storage as they arrive.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import shares
from api.errors import respond
from api.shares import ProjectBusy, Share
from jobs.settings import Settings


class FairShare:
    """Answers 429 when the bodies of the project's requests in progress are too large together."""

    def __init__(self, app: ASGIApp, config: Settings) -> None:
        self.app = app
        self.config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["state"].get("caller") if scope["type"] == "http" else None
        if caller is None:
            await self.app(scope, receive, send)
            return
        share = shares.share_of(caller.project_id, self.config)
        headers = Headers(scope=scope)
        body = _Body(receive, share)
        files = headers.get("content-type", "").startswith("multipart/")
        token = shares.current.set(share)
        try:
            if not files:
                body.reserve(int(headers.get("content-length", 0)))
            await self.app(scope, receive if files else body, send)
        except ProjectBusy as error:
            await respond(error)(scope, receive, send)
        finally:
            body.release()
            shares.current.reset(token)


class _Body:
    """A `receive` that reserves the bytes it hands on."""

    def __init__(self, receive: Receive, share: Share) -> None:
        self._receive = receive
        self._share = share
        self._reserved = self._arrived = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._arrived += len(message.get("body", b""))
        if self._arrived > self._reserved:
            self.reserve(self._arrived - self._reserved)
        return message

    def reserve(self, size: int) -> None:
        self._share.reserve(size)
        self._reserved += size

    def release(self) -> None:
        self._share.release(self._reserved)
