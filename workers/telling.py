"""A response in the background whose events are told as they come, to whoever looks: over Redis, beside the ledger.

    engine.stream ──▶ events ──XADD──▶ answer:<response> ──▶ API ──▶ clients
          └── the last one ──▶ the line's answer ──▶ ledger, which alone says how it ended

What is told is a courtesy: without Redis, and when the stream is long, the response is answered all the same. An
attempt that starts over tells its events anew, from `response.created`, under higher numbers.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from jobs.interactive import BACKGROUND_SECONDS, PIECE, TOLD_SECONDS, Piece, answer, connect, pack
from jobs.responses import FINAL, numbered
from workers.engines.port import Answer, EngineFault, Request
from workers.engines.wire import usage_of
from workers.host import EngineHost

log = logging.getLogger(__name__)
_MOST: Final = 16_384  # events of one attempt that are told


class Telling:
    """One attempt at one response."""

    def __init__(self, host: EngineHost, url: str, response_id: str, epoch: int) -> None:
        self._host, self._url = host, url
        self._name, self._epoch = answer(response_id), epoch
        self._told = 0
        self._redis: Any = None
        self._last: Any = None

    async def ask(self, request: Request) -> Answer:
        """Raises what an engine raises."""
        if not self._url:
            return await self._host.engine.answer(request)
        self._last = None  # of a try before this one
        async with connect(self._url) as self._redis:
            try:
                said = await self._host.engine.stream(request, self._emit)
            finally:
                await asyncio.shield(asyncio.create_task(self._leave()))
        if said.status != 200 or said.body:
            return said
        if self._last is None:
            raise EngineFault("The stream ended without its response.")
        body = msgspec.json.encode(self._last)
        return Answer(200, body, usage_of(body))

    async def _emit(self, chunk: bytes) -> None:
        event: dict[str, Any] = msgspec.json.decode(chunk)
        if event.get("type") in FINAL:
            self._last = event.get("response")
        elif self._told < _MOST:
            await self._tell(event)

    async def _tell(self, event: Mapping[str, Any]) -> None:
        told = {**event, "sequence_number": numbered(self._epoch, self._told)}
        self._told += 1
        # beside us: redis-py swallows a cancellation now and then, and this one stops the engine
        await asyncio.shield(asyncio.create_task(self._write(msgspec.json.encode(told))))

    async def _leave(self) -> None:
        """It has ended: the server, which has little room, soon forgets what was told."""
        with suppress(RedisError, OSError):  # it does so anyway, later
            await self._redis.expire(self._name, TOLD_SECONDS)

    async def _write(self, event: bytes) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._name, {PIECE: pack(Piece("chunk", event))})
                pipe.expire(self._name, BACKGROUND_SECONDS)
                await pipe.execute()
        except (RedisError, OSError) as error:
            self._told = _MOST  # a hole would be worse than an early end
            log.warning("response_not_told", extra={"error": str(error)})
