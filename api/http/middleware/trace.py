"""One id for a request, in its answer's `x-request-id`, in the logs and in the audit; and how long it took."""

import re
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.observe import observe_request
from jobs import logs
from jobs.ids import new_id

#: A client's own id is kept when it could be one.
_SANE = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_HEADER = b"x-request-id"


class Trace:
    """The outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _given(scope) or new_id("req_")
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                observe_request(scope, message["status"], time.perf_counter() - began)
            await send(message)

        with logs.about(request_id=request_id):
            await self.app(scope, receive, answer)


def _given(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == _HEADER]
    text = values[0].decode("latin-1") if len(values) == 1 else ""
    return text if _SANE.fullmatch(text) else None
