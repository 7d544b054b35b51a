"""The memory of the Redis or Valkey server that carries interactive requests, and the share of it that they may fill.

    0 ──── interactive requests and answers ──── 60 % ──── Celery's messages, at any time ──── maxmemory

Above this share the server is called full: new interactive requests are refused, and a stream goes on only while its
client reads it. A server without `maxmemory` is never full.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import redis

from jobs.inference.interactive import address, redis_url
from jobs.settings import Settings

SHARE: Final = 0.6
#: The code of every refusal, and the status of `/readyz`.
FULL: Final = "broker_full"
#: Bytes of a stream that may be unread, or of another answer, while the server is full.
UNREAD_WHEN_FULL: Final = 256 << 10
_SECONDS: Final = 1.0  # for which a reading is used
_TIMEOUT: Final = 0.2  # seconds that a probe of `/readyz` or `/metrics` may wait for each server


class Memory(NamedTuple):
    """A reading, in bytes; `limit` is 0 where the server has no `maxmemory`."""

    used: int
    limit: int

    @property
    def is_full(self) -> bool:
        return self.used > SHARE * self.limit > 0


class MemoryProbe:
    """Whether the server of an asynchronous client is full, as read at most a second ago."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._full = False
        self._until = 0.0

    async def is_full(self) -> bool:
        """Raises RedisError, OSError."""
        if time.monotonic() >= self._until:
            self._until = time.monotonic() + _SECONDS  # first: others use the last reading meanwhile
            with suppress(redis.exceptions.NoPermissionError):  # access rules without INFO: as without `maxmemory`
                self._full = _memory(await self._server.info("memory")).is_full
        return self._full


def read_memory(url: str, timeout: float = _TIMEOUT) -> Memory:
    """Read the memory of the server at `url`; wait at most `timeout` seconds. Raises RedisError."""
    with redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout) as server:
        return _memory(server.info("memory"))


def any_full(config: Settings) -> bool:
    """Return whether the broker, or the server of interactive requests, is full. One that does not answer is not."""
    for url in {redis_url(config), address(config.broker_url)} - {""}:
        with suppress(redis.RedisError):
            if read_memory(url).is_full:
                return True
    return False


def _memory(info: Mapping[str, Any]) -> Memory:
    return Memory(int(info["used_memory"]), int(info.get("maxmemory", 0)))
