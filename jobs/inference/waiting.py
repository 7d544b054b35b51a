"""The API's end of a waiting client's question: into the line of its queue, then the pieces of its answer as they come.

While it waits it says that its client is still there, however slowly that reads; a worker that hears it no more stops
the engine. A question that nobody took, or whose worker fell silent, ends with 503, and the SDK asks again.

    ask ──▶ pieces ──▶ the connection drops ──▶ rest ──▶ pieces        within the seconds that the client asked for;
                              └── stop, or nobody comes back: the engine is free       from any process of the API

What is read is dropped from the stream, so that it holds only what a slow reader has not read. Of one that can be
resumed the last pieces stay: they may have been lost with the connection. Who reads one beside another reader, and so
far behind it that something was dropped unread, is told so.
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from jobs.errors import (
    BrokerFull,
    InvalidRequest,
    NotFound,
    NoWorker,
    Overloaded,
    StreamsAway,
    TooManyRequests,
    WorkerLost,
)
from jobs.inference.admission import MemoryProbe, admit
from jobs.inference.interactive import (
    ANSWER_SECONDS,
    AT_ONCE,
    BEHIND,
    BEHIND_PART,
    PIECE,
    Piece,
    Question,
    Resumable,
    answer,
    asking,
    connect,
    line_of,
    pack,
    project_streams,
    project_waiting,
    redis_url,
    resumable,
    unpack_piece,
    unpack_resumable,
)
from jobs.settings import Settings
from jobs.timings import Timings

_BLOCK_MS = 250  # between looks whether the client is there
_DROP_BYTES = 64 << 10  # of what was read: so much is dropped at once
#: Larger requests are sent to Redis so many at a time: it has all of what is being sent in its memory.
_LARGE_BYTES: Final = 256 << 10
_LARGE_AT_ONCE: Final = 4
_PLACE: Final = re.compile(r"(req_[a-z0-9]{24})/(\d{1,19}-\d{1,19})", re.ASCII)  # below 2^64
_START: Final = "0-0"  # before what is first in any stream
_STOPPED: Final = Piece(
    "end",
    msgspec.json.encode(
        {"error": {"message": "The stream was stopped.", "type": "invalid_request_error", "param": None,
                   "code": "stream_stopped"}}
    ),
    408,
)  # fmt: skip


Served = Callable[[], Awaitable[bool]]
There = Callable[[], Awaitable[None]]  # raises what ends the waiting


async def _always() -> None:
    """Nobody leaves."""


def place(at: str) -> tuple[str, str]:
    """A piece's place as the question's id and where in its stream. Raises InvalidRequest."""
    found = _PLACE.fullmatch(at)
    if found is None:
        raise InvalidRequest("This is no id of an event.", param="Last-Event-ID", code="invalid_value")
    return found[1], found[2]


def beginning(at: str) -> str:
    """The place before the first piece of a piece's stream. Raises InvalidRequest."""
    return f"{place(at)[0]}/{_START}"


def second(at: str) -> int:
    """When a piece was told, in seconds of Redis's clock. Raises InvalidRequest."""
    return _order(place(at)[1])[0] // 1000


def follows(at: str, other: str) -> bool:
    """Whether a piece comes behind another of its stream. Raises InvalidRequest."""
    return _order(place(at)[1]) > _order(place(other)[1])


class Lines:
    """The questions of this process, over one pool of connections, which belongs to the loop that asks first."""

    def __init__(self, config: Settings, timings: Timings = Timings()) -> None:
        self._config, self._url, self._timings = config, redis_url(config), timings
        self._redis: Any = None  # its types say less than its documentation
        self._memory: MemoryProbe
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def ask(
        self,
        queue: str,
        question: Question,
        served: Served,
        there: There = _always,
        kept: Resumable | None = None,
        patience: float = math.inf,
    ) -> AsyncGenerator[Piece]:
        """The pieces of its answer, the last of kind `end`. `served`: whether a live worker could take it. `patience`:
        seconds without a chunk after which pieces of kind `late` say so.

        Raises BrokerFull, NotFound, NoWorker, Overloaded, StreamsAway, TooManyRequests, WorkerLost, and what `there`
        raises.
        """
        line, raw = line_of(queue), pack(question)
        asked = self._asked(question.id, question.linger, question.tenant, (line, raw), patience)
        try:
            if await self._memory.is_full():
                raise BrokerFull
            shown = pack(kept) if kept is not None else b""
            async with asked.sending():
                await admit(self._redis, self._config, line, question, raw, shown, asked.seconds)
            async with asked.staying(), aclosing(asked.pieces(served, there)) as pieces:
                async for piece in pieces:
                    yield piece
        except (BrokerFull, Overloaded, TooManyRequests):
            asked.is_refused = True
            raise
        except (RedisError, OSError) as error:
            raise StreamsAway from error
        finally:
            await asyncio.shield(asked.leave())

    async def kept(self, question_id: str, tenant: str, after: str | None = None) -> Resumable:
        """What is known of a stream, which has what follows `after`. Raises NotFound, StreamsAway."""
        try:
            raw, info, in_line = await self._facts(question_id)
        except (RedisError, OSError) as error:
            raise StreamsAway from error
        found = unpack_resumable(raw) if raw and (info or in_line) else None
        if found is None or found.tenant != tenant or (after is not None and _dropped(info, after)):
            raise _stream_gone()
        return found

    async def rest(
        self, question_id: str, after: str, kept: Resumable, there: There, served: Served
    ) -> AsyncGenerator[Piece]:
        """The pieces behind `after`, if it was not the end.

        Raises NotFound, NoWorker, StreamsAway, WorkerLost, and what `there` raises.
        """
        asked = self._asked(question_id, kept.linger, kept.tenant, patience=self._timings.interactive_late)
        try:
            if await asked.ended(after):
                return
            async with asked.staying(), aclosing(asked.pieces(served, there, after)) as pieces:
                async for piece in pieces:
                    yield piece
        except (RedisError, OSError) as error:
            raise StreamsAway from error
        finally:
            await asyncio.shield(asked.leave())

    async def stop(self, question_id: str, tenant: str) -> None:
        """Drop a resumable stream and stop counting it to its project; a connected client reads that it was stopped.

        Raises StreamsAway.
        """
        try:
            async with self._server().pipeline() as pipe:
                pipe.delete(asking(question_id), resumable(question_id))
                pipe.hdel(project_streams(tenant), question_id)
                pipe.xadd(answer(question_id), {PIECE: pack(_STOPPED)}, maxlen=1, approximate=False)
                pipe.expire(answer(question_id), int(self._timings.interactive_present))
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise StreamsAway from error

    async def told(self, response_id: str, after: str, seconds: float) -> list[tuple[str, bytes]]:
        """Events of a response in the background behind `after`, with their places; waits for one. Raises StreamsAway.

        Without a server nobody tells anything: it waits all the same.
        """
        if not self._url:
            await asyncio.sleep(seconds)
            return []
        try:
            found = await self._server().xread({answer(response_id): after}, block=int(seconds * 1000), count=AT_ONCE)
        except (RedisError, OSError) as error:
            await asyncio.sleep(seconds)
            raise StreamsAway from error
        entries = found[0][1] if found else ()
        return [(entry.decode(), unpack_piece(fields[PIECE]).body) for entry, fields in entries]

    async def forget(self, response_id: str) -> None:
        """What was told of a response. Raises StreamsAway."""
        if self._url:
            try:
                await self._server().delete(answer(response_id))
            except (RedisError, OSError) as error:
                raise StreamsAway from error

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    def _server(self) -> Any:
        """Raises StreamsAway."""
        if not self._url:
            raise StreamsAway("Waiting clients need Redis or Valkey beside this broker: set NIGHTMILL_STREAMS_URL.")
        if self._redis is None:
            self._redis = connect(self._url)
            self._memory = MemoryProbe(self._redis)
        return self._redis

    def _asked(
        self,
        question_id: str,
        linger: int,
        tenant: str,
        put: tuple[str, bytes] | None = None,
        patience: float = math.inf,
    ) -> "_Asked":
        """Raises StreamsAway."""
        behind = self._config.interactive_unread_bytes // BEHIND_PART
        return _Asked(self._server(), question_id, linger, tenant, put, patience, behind, self._large, self._timings)

    async def _facts(self, question_id: str) -> tuple[bytes | None, dict[str, Any], bool]:
        """What was kept; what the server knows of the answer, nothing where it is gone or not begun; and whether it may
        still begin."""
        async with self._server().pipeline(transaction=False) as pipe:
            pipe.get(resumable(question_id))
            pipe.exists(answer(question_id), asking(question_id))
            pipe.exists(answer(question_id))
            raw, either, there = await pipe.execute()
        return raw, await self._redis.xinfo_stream(answer(question_id)) if there else {}, bool(either)


async def last_piece(pieces: AsyncGenerator[Piece]) -> Piece:
    """How an answer that is no stream ends. Raises WorkerLost, and what `Lines.ask` raises."""
    async with aclosing(pieces):
        async for piece in pieces:
            if piece.kind == "end":
                return piece
    raise WorkerLost


class _Asked:
    """One question on its way, or the rest of its answer."""

    def __init__(
        self,
        server: Any,
        question_id: str,
        linger: int,
        tenant: str,
        put: tuple[str, bytes] | None,
        patience: float,
        behind_bytes: int,
        large: asyncio.Semaphore,
        timings: Timings,
    ) -> None:
        self._redis, self._id, self._linger, self._patience = server, question_id, linger, patience
        self._behind_bytes, self._large, self._timings = behind_bytes, large, timings
        self.is_refused = False  # then Redis has nothing of it
        self._has_no_worker = False  # then there is nothing to come back to
        self._tenant = tenant
        self._line, self._raw = put or ("", b"")
        self._taken = put is None
        self._told = put is None  # whether the client knows how to come back
        self.seconds = max(int(timings.interactive_present), linger)
        self._read: deque[tuple[bytes, int]] = deque()
        self._read_bytes = 0
        self._gone = 0
        self._heard = self._looked = self._asked = self._said = time.monotonic()

    def sending(self) -> AbstractAsyncContextManager[None]:
        """Wait for a turn to send the request to Redis, if it is large."""
        return self._large if len(self._raw) > _LARGE_BYTES else nullcontext()

    @asynccontextmanager
    async def staying(self) -> AsyncGenerator[None]:
        """Say meanwhile that the client is there: whoever reads slowly holds `pieces` up at each of them."""
        over = asyncio.Event()

        async def stay() -> None:
            while not over.is_set():  # redis-py swallows a cancellation now and then
                await asyncio.sleep(self._timings.interactive_renew)
                with suppress(RedisError, OSError):  # whoever reads meets it too, and tells
                    await self._renew()

        renewing = asyncio.create_task(stay())
        try:
            yield
        finally:
            over.set()
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def pieces(self, served: Served, there: There, last: str = _START) -> AsyncGenerator[Piece]:
        """Raises NotFound, NoWorker, WorkerLost, and what `there` raises."""
        name = answer(self._id)
        while True:
            found = await self._redis.xread({name: last}, block=_BLOCK_MS, count=AT_ONCE)
            entries = found[0][1] if found else ()
            if self._linger and len(entries) == AT_ONCE:  # whoever drops what follows `last` leaves more than this
                await self._check_nothing_missed(last)
            for entry, fields in entries:
                last, self._taken, self._heard = entry.decode(), True, time.monotonic()
                piece = msgspec.structs.replace(unpack_piece(fields[PIECE]), at=f"{self._id}/{last}")
                if piece.kind == "chunk":
                    self._told, self._patience = True, math.inf
                yield piece
                if piece.kind == "end":
                    return
                self._read.append((entry, len(fields[PIECE])))
                self._read_bytes += len(fields[PIECE])
            if entries:
                self._heard = time.monotonic()  # what was said while a slow client read is there to be read
            await self._drop_read()
            await self._look(time.monotonic(), served, there)
            if self._is_late(time.monotonic()):
                yield Piece("late", at=f"{self._id}/{last}")

    async def ended(self, after: str) -> bool:
        """Whether nothing comes behind that. What has no answer is still in line, until its time is over."""
        found = await self._redis.xrevrange(answer(self._id), count=1)
        self._taken = bool(found)
        return any(
            unpack_piece(fields[PIECE]).kind == "end" and _order(after) >= _order(entry.decode())
            for entry, fields in found
        )

    async def leave(self) -> None:
        """The connection is over. Whoever can come back has time to; else the engine is free."""
        if self.is_refused:
            return
        with suppress(RedisError, OSError):  # everything has an end of its own
            async with self._redis.pipeline(transaction=False) as pipe:
                if self._linger and self._told and not self._has_no_worker:
                    for name in (asking(self._id), answer(self._id), resumable(self._id)):
                        pipe.expire(name, self._linger)
                else:
                    pipe.delete(asking(self._id), answer(self._id), resumable(self._id))
                    pipe.hdel(project_waiting(self._tenant), self._id)
                    pipe.hdel(project_streams(self._tenant), self._id)
                    if self._line and not self._taken:
                        pipe.lrem(self._line, 1, self._raw)
                await pipe.execute()

    def _is_late(self, at: float) -> bool:
        """Once its client has been told where to come back, it can."""
        if at - self._said < self._patience:
            return False
        self._said, self._patience, self._told = at, self._timings.interactive_late, True
        return True

    async def _check_nothing_missed(self, last: str) -> None:
        """Between `last` and what was read a moment ago: another reader may have dropped it. Raises NotFound."""
        if _dropped(await self._redis.xinfo_stream(answer(self._id)), last):
            raise _stream_gone()

    async def _drop_read(self) -> None:
        pieces, size, least = (BEHIND, self._behind_bytes, AT_ONCE) if self._linger else (0, 0, 0)
        if len(self._read) < pieces + AT_ONCE and self._read_bytes < size + _DROP_BYTES:
            return
        oldest = b""
        while len(self._read) > pieces or (self._read_bytes > size and len(self._read) > least):
            oldest, length = self._read.popleft()
            self._read_bytes -= length
        if oldest:
            await self._redis.xtrim(answer(self._id), minid=oldest, approximate=False)

    async def _look(self, at: float, served: Served, there: There) -> None:
        """Is the client there, and the worker?"""
        if at - self._asked >= _BLOCK_MS / 1000:
            self._asked = at
            await there()
        try:
            if self._taken and at - self._heard > self._timings.interactive_silence:
                raise WorkerLost
            if not self._taken and at - self._looked >= self._timings.interactive_taken:
                self._looked = at
                await self._find(served)
        except (NoWorker, WorkerLost):  # not those of `there`: after a restart of the API its clients come back
            self._has_no_worker = True
            raise

    async def _renew(self) -> None:
        """Only what is there: one that was stopped elsewhere stays so."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.expire(asking(self._id), self.seconds)
            pipe.expire(resumable(self._id), self.seconds)
            pipe.expire(answer(self._id), max(ANSWER_SECONDS, self._linger))
            await pipe.execute()

    async def _find(self, served: Served) -> None:
        """Still in the line, and somebody to take it? Missing once, it may be on its way into somebody's hands.

        Whoever has come back does not know what was put there.
        """
        async with self.sending():
            in_line = not self._line or await self._redis.lpos(self._line, self._raw) is not None
        self._gone = 0 if in_line else self._gone + 1
        if self._gone > 1:
            raise WorkerLost
        if not await served():
            raise NoWorker


def _dropped(info: Mapping[str, Any], after: str) -> bool:
    """Whether something that follows may have been dropped."""
    if not info:
        return after != _START
    first = info["first-entry"]
    return info["entries-added"] > info["length"] and first is not None and _order(after) < _order(first[0].decode())


def _stream_gone() -> NotFound:
    message = "This stream is gone, or cannot be resumed from there."
    return NotFound(message, param="Last-Event-ID", code="stream_gone")


def _order(entry: str) -> tuple[int, ...]:
    """Where in a stream, to be compared."""
    return tuple(map(int, entry.split("-")))
