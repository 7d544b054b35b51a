"""Write server-sent events, and end a stream when its key is revoked."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import Header
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api.deps import CallContext
from jobs.errors import Unauthenticated
from jobs.security.keys import find_key

log = logging.getLogger(__name__)
T = TypeVar("T")

EVENT_STREAM: Final = "text/event-stream"
#: A comment, which clients ignore, while there is no event to send. No empty line follows: after an id, OpenAI's SDK
#: for Python would take it for an event without data, and break.
KEEP_ALIVE: Final = b": alive\n"
DONE: Final = b"[DONE]"
#: For streams whose ids are numbers.
LastEventId = Annotated[str | None, Header(description="As browsers send it when they reconnect; goes before `after`.")]


class KeyRevoked(Unauthenticated):
    """The key of a stream's request was revoked, has expired, or no longer permits the call."""


def event(data: Any, *, kind: str = "", at: str = "") -> bytes:
    """Return one event. `data` is JSON as bytes or a value, `kind` its name, `at` the id to resume behind."""
    head = b"id: %b\n" % at.encode() if at else b""
    if kind:
        head += b"event: %b\n" % kind.encode()
    return b"%bdata: %b\n\n" % (head, data if isinstance(data, bytes) else msgspec.json.encode(data))


def event_stream(events: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> StreamingResponse:
    """Return the response that sends `events` without buffering by proxies."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
    return StreamingResponse(events, media_type=EVENT_STREAM, headers=headers)


def position_of(last_event_id: str | None, after: T) -> int | T:
    """Return the position to resume behind: the event id if it is a number, otherwise `after`.

    Browsers may send any id.
    """
    known = last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit()
    return int(last_event_id[:18]) if known and last_event_id else after


def check_key(session: Session, call: CallContext) -> None:
    """Check that the caller's key is still live, and still permits the call.

    Raises: KeyRevoked.
    """
    current = find_key(session, call.caller.key_id)
    if current is None or not current.is_live or call.permission not in current.permissions:
        raise KeyRevoked


async def stop_on_revocation(pieces: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield `pieces`; end the stream without an error when its key is revoked, because its status was sent before."""
    try:
        async for piece in pieces:
            yield piece
    except KeyRevoked:
        log.info("stream_key_revoked")
