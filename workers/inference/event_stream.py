"""A response in the background whose events are told as they come, to whoever looks: over Redis, beside the ledger.

    engine.stream ──▶ events ──XADD──▶ answer:<response> ──▶ API ──▶ clients
          └── the last one ──▶ the line's answer ──▶ ledger, which alone says how it ended

What is told is a courtesy: the response is answered all the same without Redis, where Redis has no memory to spare or
the project holds too much of it, and when the stream is long. An attempt that starts over tells its events anew, from
`response.created`, under higher numbers.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from jobs.inference.admission import BLOCK, count_block, most_held
from jobs.inference.broker_memory import MemoryProbe
from jobs.inference.interactive import BACKGROUND_SECONDS, PIECE, TOLD_SECONDS, Piece, answer, connect, pack, redis_url
from jobs.inference.responses import FINAL, numbered
from jobs.settings import Settings
from workers.engines.port import Answer, EngineFault, Request
from workers.engines.wire import usage_of
from workers.runtime.engine_host import EngineHost

log = logging.getLogger(__name__)
_MOST: Final = 16_384  # events of one attempt that are told
_AT_ONCE: Final = 64  # of them in one round trip
_PATIENCE: Final = 5.0  # seconds for a round trip, and for all that is left to tell when the answer is there


class Telling:
    """One attempt at one response."""

    def __init__(self, host: EngineHost, config: Settings, response_id: str, epoch: int) -> None:
        self._host, self._config, self._url = host, config, redis_url(config)
        self._id, self._name, self._epoch = response_id, answer(response_id), epoch
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._told = self._bytes = self._counted = 0
        self._last: Any = None

    async def ask(self, request: Request) -> Answer:
        """Raises what an engine raises."""
        if not self._url:
            return await self._host.engine.answer(request)
        self._last = None  # of a try before this one
        self._events = asyncio.Queue()  # without what a try before this one could not tell
        telling = asyncio.create_task(self._tell(request.tenant))
        try:
            said = await self._host.engine.stream(request, self._emit)
        finally:
            self._events.put_nowait(None)
            _, late = await asyncio.wait({telling}, timeout=_PATIENCE)  # of us cancelled, it ends by itself
            for task in late:
                task.cancel()
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
            told = {**event, "sequence_number": numbered(self._epoch, self._told)}
            self._told += 1
            self._events.put_nowait(msgspec.json.encode(told))

    async def _tell(self, tenant: str) -> None:
        """A task of its own: redis-py swallows a cancellation now and then, and the one of `ask` stops the engine."""
        async with connect(self._url) as server:
            memory = MemoryProbe(server)
            try:
                while events := await self._next():
                    async with asyncio.timeout(_PATIENCE):
                        if not await self._has_room(server, memory, tenant, events):
                            self._told = _MOST
                            log.info("response_no_longer_told", extra={"response": self._id})
                            break
                        await self._write(server, events)
                async with asyncio.timeout(_PATIENCE):
                    await server.expire(self._name, TOLD_SECONDS)  # it has ended; the server has little room
            except (RedisError, OSError) as error:
                self._told = _MOST  # a hole would be worse than an early end
                log.warning("response_not_told", extra={"error": str(error)})

    async def _has_room(self, server: Any, memory: MemoryProbe, tenant: str, events: Sequence[bytes]) -> bool:
        """Count these events, and return whether Redis may hold them too. Raises RedisError, OSError."""
        self._bytes += sum(map(len, events))
        if self._bytes > self._config.interactive_unread_bytes or await memory.is_full():
            return False
        while self._counted < self._bytes:
            if not await count_block(server, tenant, self._id, most_held(self._config)):
                return False
            self._counted += BLOCK
        return True

    async def _next(self) -> list[bytes]:
        """What there is to tell, as soon as there is something; nothing at the end."""
        told = []
        event = await self._events.get()
        while event is not None:
            told.append(event)
            if len(told) == _AT_ONCE or self._events.empty():
                return told
            event = self._events.get_nowait()
        if told:
            self._events.put_nowait(None)  # the end, once more
        return told

    async def _write(self, server: Any, events: Sequence[bytes]) -> None:
        async with server.pipeline(transaction=False) as pipe:
            for event in events:
                pipe.xadd(self._name, {PIECE: pack(Piece("chunk", event))})
            pipe.expire(self._name, BACKGROUND_SECONDS)
            await pipe.execute()
