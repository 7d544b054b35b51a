"""Give each request the share of its project: see `api.shares`.

The bytes of a JSON body are reserved by its Content-Length before it is read, those of a chunked one as they arrive,
until the request is answered; so are those of a conversation that it continues. Files are not counted: they go to
storage as they arrive.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import shares
from api.errors import respond
from api.shares import ProjectBusy, Usage
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
        usage = Usage(shares.share_of(caller.project_id, self.config))
        headers = Headers(scope=scope)
        files = headers.get("content-type", "").startswith("multipart/")
        token = shares.current.set(usage)
        try:
            body = receive if files else _Body(receive, usage, int(headers.get("content-length", 0)))
            await self.app(scope, body, send)
        except ProjectBusy as error:
            await respond(error)(scope, receive, send)
        finally:
            usage.release()
            shares.current.reset(token)


class _Body:
    """A `receive` that reserves the bytes it hands on: first those that were announced. Raises ProjectBusy."""

    def __init__(self, receive: Receive, usage: Usage, announced: int) -> None:
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
