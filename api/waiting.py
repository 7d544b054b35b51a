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

from jobs.errors import NoWorker, Unavailable
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


class Overloaded(Unavailable):
    """Too many clients wait for this model. Ask again in a moment."""

    code = "too_many_waiting"


class StreamsAway(Unavailable):
    """The Redis server that carries the questions of waiting clients cannot be reached."""

    code = "streams_unavailable"


class WorkerLost(Unavailable):
    """The worker that answered was lost. Ask again."""

    code = "worker_lost"


class Lines:
    """The questions of this process, over one pool of connections, which belongs to the loop that asks first."""

    def __init__(self, config: Settings) -> None:
        self._url = redis_url(config)
        self._most = config.interactive_waiting
        self._redis: Any = None  # its types say less than its documentation

    async def ask(self, queue: str, question: Question, served: Callable[[], Awaitable[bool]]) -> AsyncGenerator[Piece]:
        """The pieces of its answer, the last of kind `end`. `served`: whether a live worker could take it.

        Raises NoWorker, Overloaded, StreamsAway, WorkerLost.
        """
        if not self._url:
            raise StreamsAway("Waiting clients need Redis or Valkey beside this broker: set NIGHTMILL_STREAMS_URL.")
        raw = pack(question)
        try:
            await self._put(queue, question, raw)
            async with aclosing(self._pieces(queue, question, raw, served)) as pieces:
                async for piece in pieces:
                    yield piece
        except (RedisError, OSError) as error:
            raise StreamsAway from error
        finally:
            await asyncio.shield(self._forget(queue, question, raw))

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    def _connected(self) -> Any:
        if self._redis is None:
            self._redis = connect(self._url)
        return self._redis

    async def _put(self, queue: str, question: Question, raw: bytes) -> None:
        line = line_of(queue)
        if await self._connected().llen(line) >= self._most:
            raise Overloaded
        async with self._connected().pipeline() as pipe:
            pipe.set(asking(question.id), b"1", ex=ASKING_SECONDS)
            pipe.rpush(line, raw)
            await pipe.execute()

    async def _pieces(
        self, queue: str, question: Question, raw: bytes, served: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Piece]:
        last = b"0"
        taken, heard = False, time.monotonic()
        renewed = looked = heard
        while True:
            found = await self._connected().xread({answer(question.id): last}, block=_BLOCK_MS)
            at = time.monotonic()
            for entry, fields in found[0][1] if found else ():
                last, taken, heard = entry, True, at
                piece = unpack_piece(fields[PIECE])
                yield piece
                if piece.kind == "end":
                    return
            if at - renewed >= _RENEW_SECONDS:
                renewed = at
                await self._connected().set(asking(question.id), b"1", ex=ASKING_SECONDS)
            if taken and at - heard > _SILENCE_SECONDS:
                raise WorkerLost
            if not taken and at - looked >= _LOOK_SECONDS:
                looked = at
                await self._untaken(queue, raw, served)

    async def _untaken(self, queue: str, raw: bytes, served: Callable[[], Awaitable[bool]]) -> None:
        """Still in the line, and somebody to take it? One that is in nobody's hands any more was lost."""
        if await self._connected().lpos(line_of(queue), raw) is None:
            raise WorkerLost
        if not await served():
            raise NoWorker

    async def _forget(self, queue: str, question: Question, raw: bytes) -> None:
        with suppress(RedisError, OSError):  # everything has an end of its own
            async with self._connected().pipeline(transaction=False) as pipe:
                pipe.delete(asking(question.id), answer(question.id))
                pipe.lrem(line_of(queue), 1, raw)
                await pipe.execute()
