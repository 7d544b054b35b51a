"""The API's end of a waiting client's question: into the line of its queue, then the pieces of its answer as they come.

While it waits it says that its client is still there; a worker that hears it no more stops the engine. A question that
nobody took, or whose worker fell silent, ends with 503, and the SDK asks again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from redis.exceptions import RedisError

from jobs.errors import NoWorker, Overloaded, StreamsAway, WorkerLost
from jobs.interactive import (
    ALIVE_SECONDS,
    ASKING_SECONDS,
    PIECE,
    Piece,
    Question,
    answer,
    asking,
    connect,
    line_of,
    pack,
    redis_url,
    unpack_piece,
)
from jobs.settings import Settings

_BLOCK_MS = 500
_RENEW_SECONDS = 2.0
_LOOK_SECONDS = 2.0  # between looks at what became of a question that nobody has taken
_SILENCE_SECONDS = 6 * ALIVE_SECONDS


Served = Callable[[], Awaitable[bool]]


class Lines:
    """The questions of this process, over one pool of connections, which belongs to the loop that asks first."""

    def __init__(self, config: Settings) -> None:
        self._url = redis_url(config)
        self._most = config.interactive_waiting
        self._redis: Any = None  # its types say less than its documentation

    async def ask(self, queue: str, question: Question, served: Served) -> AsyncGenerator[Piece]:
        """The pieces of its answer, the last of kind `end`. `served`: whether a live worker could take it.

        Raises NoWorker, Overloaded, StreamsAway, WorkerLost.
        """
        if not self._url:
            raise StreamsAway("Waiting clients need Redis or Valkey beside this broker: set NIGHTMILL_STREAMS_URL.")
        if self._redis is None:
            self._redis = connect(self._url)
        asked = _Asked(self._redis, line_of(queue), question)
        try:
            await asked.put(self._most)
            async with aclosing(asked.pieces(served)) as pieces:
                async for piece in pieces:
                    yield piece
        except (RedisError, OSError) as error:
            raise StreamsAway from error
        finally:
            await asyncio.shield(asked.forget())

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None


async def last_piece(pieces: AsyncGenerator[Piece]) -> Piece:
    """How an answer that is no stream ends. Raises WorkerLost, and what `Lines.ask` raises."""
    async with aclosing(pieces):
        async for piece in pieces:
            if piece.kind == "end":
                return piece
    raise WorkerLost


class _Asked:
    """One question on its way."""

    def __init__(self, server: Any, line: str, question: Question) -> None:
        self._redis, self._line, self._id = server, line, question.id
        self._raw = pack(question)
        self._taken, self._gone = False, 0
        self._heard = self._renewed = self._looked = time.monotonic()

    async def put(self, most: int) -> None:
        """Into the line, unless so many are there already. Raises Overloaded."""
        if await self._redis.llen(self._line) >= most:
            raise Overloaded
        async with self._redis.pipeline() as pipe:
            pipe.set(asking(self._id), b"1", ex=ASKING_SECONDS)
            pipe.rpush(self._line, self._raw)
            await pipe.execute()

    async def pieces(self, served: Served) -> AsyncGenerator[Piece]:
        """Raises NoWorker, WorkerLost."""
        last = b"0"
        while True:
            found = await self._redis.xread({answer(self._id): last}, block=_BLOCK_MS)
            for entry, fields in found[0][1] if found else ():
                last, self._taken, self._heard = entry, True, time.monotonic()
                piece = unpack_piece(fields[PIECE])
                yield piece
                if piece.kind == "end":
                    return
            await self._look(time.monotonic(), served)

    async def _look(self, at: float, served: Served) -> None:
        """Say that the client is there; is the worker?"""
        if at - self._renewed >= _RENEW_SECONDS:
            self._renewed = at
            await self._redis.set(asking(self._id), b"1", ex=ASKING_SECONDS)
        if self._taken and at - self._heard > _SILENCE_SECONDS:
            raise WorkerLost
        if not self._taken and at - self._looked >= _LOOK_SECONDS:
            self._looked = at
            await self._find(served)

    async def _find(self, served: Served) -> None:
        """Still in the line, and somebody to take it? Missing once, it may be on its way into somebody's hands."""
        in_line = await self._redis.lpos(self._line, self._raw) is not None
        self._gone = 0 if in_line else self._gone + 1
        if self._gone > 1:
            raise WorkerLost
        if not await served():
            raise NoWorker

    async def forget(self) -> None:
        with suppress(RedisError, OSError):  # everything has an end of its own
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.delete(asking(self._id), answer(self._id))
                pipe.lrem(self._line, 1, self._raw)
                await pipe.execute()
