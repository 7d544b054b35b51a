"""End a stream when its key is revoked."""

import logging
from collections.abc import AsyncIterator
from typing import TypeVar

from sqlalchemy.orm import Session

from api.deps import CallContext
from jobs.security.tables import ApiKey

log = logging.getLogger(__name__)
T = TypeVar("T")


class KeyRevoked(Exception):
    """The key that a stream was asked for with is no more."""


def check_key(session: Session, call: CallContext) -> None:
    """Raises KeyRevoked."""
    key = session.get(ApiKey, call.caller.key_id)
    if key is None or key.revoked_at is not None:
        raise KeyRevoked


async def until_revoked(pieces: AsyncIterator[T]) -> AsyncIterator[T]:
    """A stream that simply ends when its key is revoked: its status was sent long ago."""
    try:
        async for piece in pieces:
            yield piece
    except KeyRevoked:
        log.info("stream_key_revoked")
