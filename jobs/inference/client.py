"""Clients' end of interactive requests: put a request into its queue, and read the entries of its answer as they come.

While a client waits, its presence is renewed in Redis, however slowly that client reads. A worker that misses the
presence stops the engine. A request that no worker took, or whose worker was lost, ends with 503: the SDK retries.

    submit ──▶ entries ──▶ the connection drops ──▶ resume ──▶ entries     within the seconds that the client named,
                                └── stopped, or not resumed in time: the engine is free    in any process of the API

Entries that were read are dropped from the Redis stream, so that it holds only what a slow reader has not read. Of a
stream that can be resumed the last entries stay, because they may have been lost with the connection. Where two
readers follow one stream, the slower one is refused as soon as entries were dropped that it has not read.
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
    NotBegun,
    NotFound,
    NoWorker,
    Overloaded,
    StreamsUnavailable,
    TooManyRequests,
    WorkerLost,
)
from jobs.inference import admission
from jobs.inference.admission import MemoryProbe, admit, admit_shadow
from jobs.inference.interactive import (
    ANSWER_SECONDS,
    AT_ONCE,
    BEHIND,
    BEHIND_PART,
    ENTRY_FIELD,
    AnswerEntry,
    QueuedRequest,
    Resumable,
    answer_key,
    client_key,
    connect,
    pack,
    queue_key,
    redis_url,
    resumable_key,
    streams_key,
    unpack_entry,
    unpack_resumable,
    waiting_key,
)
from jobs.inference.rate_limiter import RateLimiter
from jobs.settings import Settings
from jobs.timings import Timings

_BLOCK_MS = 250  # of one read; between two reads the client's connection is checked
_DROP_BYTES = 64 << 10  # that were read are dropped at once
#: Larger requests are sent to Redis a few at a time: the server holds in memory all that is being sent.
_LARGE_BYTES: Final = 256 << 10
_LARGE_AT_ONCE: Final = 4
_POSITION: Final = re.compile(r"(req_[a-z0-9]{24})/(\d{1,19}-\d{1,19})", re.ASCII)  # below 2^64
_START: Final = "0-0"  # before the first entry of any stream
_STOPPED: Final = AnswerEntry(
    "end",
    msgspec.json.encode(
        {"error": {"message": "The stream was stopped.", "type": "invalid_request_error", "param": None,
                   "code": "stream_stopped"}}
    ),
    408,
)  # fmt: skip


WorkerCheck = Callable[[], Awaitable[bool]]
ClientCheck = Callable[[], Awaitable[None]]  # raises the error that ends the wait


async def _is_always_connected() -> None:
    """Take the client as connected."""


def parse_position(position: str) -> tuple[str, str]:
    """Split an entry's position into the request's id and the id of the entry. Raises InvalidRequest."""
    match = _POSITION.fullmatch(position)
    if match is None:
        raise InvalidRequest("This is not the id of an event.", param="Last-Event-ID", code="invalid_value")
    return match[1], match[2]


def stream_start(position: str) -> str:
    """Return the position before the first entry of the stream that `position` is in. Raises InvalidRequest."""
    return f"{parse_position(position)[0]}/{_START}"


def second_of(position: str) -> int:
    """Return when the entry at `position` was written, in seconds of Redis's clock. Raises InvalidRequest."""
    return _order(parse_position(position)[1])[0] // 1000


def is_after(position: str, other: str) -> bool:
    """Return whether `position` is behind another position of its stream. Raises InvalidRequest."""
    return _order(parse_position(position)[1]) > _order(parse_position(other)[1])


class InferenceClient:
    """The interactive requests of this process, over one pool of connections. For one event loop.

    `rates` counts them where a project has rate limits.
    """

    def __init__(self, config: Settings, timings: Timings = Timings()) -> None:
        self._config, self._url, self._timings = config, redis_url(config), timings
        self._redis: Any = None  # its types say less than its documentation
        self._memory: MemoryProbe
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self.rates = RateLimiter(self._server)

    async def submit(
        self,
        queue: str,
        request: QueuedRequest,
        is_served: WorkerCheck,
        check_client: ClientCheck = _is_always_connected,
        resumable: Resumable | None = None,
        patience: float = math.inf,
        of_shadow: tuple[str, int] | None = None,
        begins_within: float = math.inf,
    ) -> AsyncGenerator[AnswerEntry]:
        """Queue a request and yield the entries of its answer, the last one of kind `end`.

        `is_served` says whether a live worker may take the request. After `patience` seconds without a chunk, entries
        of kind `late` are yielded. `of_shadow` is the alias whose shadow is asked, and how many requests for it may be
        in flight. The request is given up where it has neither a chunk nor an end after `begins_within` seconds.

        Raises BrokerFull, NotBegun, NotFound, NoWorker, Overloaded, StreamsUnavailable, TooManyRequests, WorkerLost,
        and the errors of `check_client`.
        """
        key, raw = queue_key(queue), pack(request)
        reader = self._reader(request.id, request.linger, request.tenant, (key, raw), patience)
        reader.begin_by = time.monotonic() + begins_within
        try:
            if await self._memory.is_full():
                raise BrokerFull
            packed = pack(resumable) if resumable is not None else b""
            async with reader.sending():
                if of_shadow:
                    await admit_shadow(self._redis, self._config, key, request, raw, *of_shadow, reader.seconds)
                else:
                    await admit(self._redis, self._config, key, request, raw, packed, reader.seconds)
            async with reader.present(), aclosing(reader.entries(is_served, check_client)) as entries:
                async for entry in entries:
                    yield entry
        except (BrokerFull, Overloaded, TooManyRequests):
            reader.is_refused = True
            raise
        except (RedisError, OSError) as error:
            raise StreamsUnavailable from error
        finally:
            await asyncio.shield(reader.leave())

    async def find_resumable(self, request_id: str, tenant: str, after: str | None = None) -> Resumable:
        """Describe a stream that still has all entries behind `after`. Raises NotFound, StreamsUnavailable."""
        try:
            raw, info, may_begin = await self._look_up(request_id)
        except (RedisError, OSError) as error:
            raise StreamsUnavailable from error
        resumable = unpack_resumable(raw) if raw and (info or may_begin) else None
        if resumable is None or resumable.tenant != tenant or (after is not None and _dropped(info, after)):
            raise _stream_gone()
        return resumable

    async def resume(
        self, request_id: str, after: str, resumable: Resumable, check_client: ClientCheck, is_served: WorkerCheck
    ) -> AsyncGenerator[AnswerEntry]:
        """Yield the entries behind `after`; none where `after` is the end.

        Raises NotFound, NoWorker, StreamsUnavailable, WorkerLost, and the errors of `check_client`.
        """
        patience = self._timings.interactive_late
        reader = self._reader(request_id, resumable.linger, resumable.tenant, patience=patience)
        try:
            if await reader.has_ended(after):
                return
            async with reader.present(), aclosing(reader.entries(is_served, check_client, after)) as entries:
                async for entry in entries:
                    yield entry
        except (RedisError, OSError) as error:
            raise StreamsUnavailable from error
        finally:
            await asyncio.shield(reader.leave())

    async def stop(self, request_id: str, tenant: str) -> None:
        """Drop a resumable stream and stop counting it to its project; a connected client reads that it was stopped.

        Raises StreamsUnavailable.
        """
        try:
            async with self._server().pipeline() as pipe:
                pipe.delete(client_key(request_id), resumable_key(request_id))
                pipe.hdel(streams_key(tenant), request_id)
                pipe.xadd(answer_key(request_id), {ENTRY_FIELD: pack(_STOPPED)}, maxlen=1, approximate=False)
                pipe.expire(answer_key(request_id), int(self._timings.interactive_present))
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise StreamsUnavailable from error

    async def read_events(self, response_id: str, after: str, seconds: float) -> list[tuple[str, bytes]]:
        """Return the events of a background response behind `after`, each with its position. Wait for one event.

        Without a Redis server no events are published: wait for `seconds` all the same, and return none.

        Raises StreamsUnavailable.
        """
        if not self._url:
            await asyncio.sleep(seconds)
            return []
        try:
            reply = await self._server().xread(
                {answer_key(response_id): after}, block=int(seconds * 1000), count=AT_ONCE
            )
        except (RedisError, OSError) as error:
            await asyncio.sleep(seconds)
            raise StreamsUnavailable from error
        rows = reply[0][1] if reply else ()
        return [(entry_id.decode(), unpack_entry(fields[ENTRY_FIELD]).body) for entry_id, fields in rows]

    async def delete_events(self, response_id: str) -> None:
        """Delete the published events of a background response. Raises StreamsUnavailable."""
        if self._url:
            try:
                await self._server().delete(answer_key(response_id))
            except (RedisError, OSError) as error:
                raise StreamsUnavailable from error

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    def _server(self) -> Any:
        """Return the Redis client, connecting on the first call. Raises StreamsUnavailable."""
        if not self._url:
            raise StreamsUnavailable(
                "Interactive clients need Redis or Valkey beside this broker: set NIGHTMILL_STREAMS_URL."
            )
        if self._redis is None:
            self._redis = connect(self._url)
            self._memory = MemoryProbe(self._redis)
        return self._redis

    def _reader(
        self,
        request_id: str,
        linger: int,
        tenant: str,
        queued: tuple[str, bytes] | None = None,
        patience: float = math.inf,
    ) -> "_AnswerReader":
        """Return a reader of a request's answer. Raises StreamsUnavailable."""
        behind = admission.MAX_UNREAD_BYTES // BEHIND_PART
        server = self._server()
        return _AnswerReader(server, request_id, linger, tenant, queued, patience, behind, self._large, self._timings)

    async def _look_up(self, request_id: str) -> tuple[bytes | None, dict[str, Any], bool]:
        """Return the packed description of a stream, what Redis knows of its answer, and whether it may still begin.

        The second value is empty where the answer has not begun or is gone.
        """
        async with self._server().pipeline(transaction=False) as pipe:
            pipe.get(resumable_key(request_id))
            pipe.exists(answer_key(request_id), client_key(request_id))
            pipe.exists(answer_key(request_id))
            raw, either, has_answer = await pipe.execute()
        info = await self._redis.xinfo_stream(answer_key(request_id)) if has_answer else {}
        return raw, info, bool(either)


async def last_entry(entries: AsyncGenerator[AnswerEntry]) -> AnswerEntry:
    """Return the entry that ends an answer which is not a stream. Raises WorkerLost, and what `submit` raises."""
    async with aclosing(entries):
        async for entry in entries:
            if entry.kind == "end":
                return entry
    raise WorkerLost


class _AnswerReader:
    """The answer to one request as one connection reads it, from its queue or from the middle.

    `queued` is the key of the queue and the packed request; None where a stream is resumed.
    """

    def __init__(
        self,
        server: Any,
        request_id: str,
        linger: int,
        tenant: str,
        queued: tuple[str, bytes] | None,
        patience: float,
        behind_bytes: int,
        large: asyncio.Semaphore,
        timings: Timings,
    ) -> None:
        self._redis, self._id, self._linger, self._patience = server, request_id, linger, patience
        self._behind_bytes, self._large, self._timings = behind_bytes, large, timings
        self.is_refused = False  # then Redis has nothing of the request
        self.begin_by = math.inf  # on the monotonic clock
        self._has_no_worker = False  # then there is nothing to resume
        self._tenant = tenant
        self._queue_key, self._raw = queued or ("", b"")
        self._is_taken = queued is None
        self._is_named = queued is None  # whether the client knows the id to resume by
        self.seconds = max(int(timings.interactive_present), linger)
        self._read: deque[tuple[bytes, int]] = deque()
        self._read_bytes = 0
        self._missed = 0  # looks in a row that did not find the request in its queue
        self._last_entry = self._last_worker_check = self._last_client_check = self._last_late = time.monotonic()

    def sending(self) -> AbstractAsyncContextManager[None]:
        """Wait for a turn to send the request to Redis, if the request is large."""
        return self._large if len(self._raw) > _LARGE_BYTES else nullcontext()

    @asynccontextmanager
    async def present(self) -> AsyncGenerator[None]:
        """Renew the client's presence in a task of its own: a slow client suspends `entries` at each entry."""
        over = asyncio.Event()

        async def renew() -> None:
            while not over.is_set():  # redis-py swallows a cancellation now and then
                await asyncio.sleep(self._timings.interactive_renew)
                with suppress(RedisError, OSError):  # `entries` meets the same error and raises it
                    await self._renew()

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            over.set()
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def entries(
        self, is_served: WorkerCheck, check_client: ClientCheck, last: str = _START
    ) -> AsyncGenerator[AnswerEntry]:
        """Yield the entries behind `last` up to the end.

        Raises NotBegun, NotFound, NoWorker, WorkerLost, and the errors of `check_client`.
        """
        name = answer_key(self._id)
        while True:
            reply = await self._redis.xread({name: last}, block=_BLOCK_MS, count=AT_ONCE)
            rows = reply[0][1] if reply else ()
            if self._linger and len(rows) == AT_ONCE:  # a reader that drops what follows `last` leaves more than this
                await self._check_nothing_missed(last)
            for entry_id, fields in rows:
                last, self._is_taken, self._last_entry = entry_id.decode(), True, time.monotonic()
                entry = msgspec.structs.replace(unpack_entry(fields[ENTRY_FIELD]), position=f"{self._id}/{last}")
                if entry.kind == "chunk":
                    self._is_named, self._patience, self.begin_by = True, math.inf, math.inf
                yield entry
                if entry.kind == "end":
                    return
                self._read.append((entry_id, len(fields[ENTRY_FIELD])))
                self._read_bytes += len(fields[ENTRY_FIELD])
            if rows:
                self._last_entry = time.monotonic()  # entries written while a slow client read are still to be read
            await self._drop_read()
            await self._check(time.monotonic(), is_served, check_client)
            if self._is_late(time.monotonic()):
                yield AnswerEntry("late", position=f"{self._id}/{last}")

    async def has_ended(self, after: str) -> bool:
        """Return whether no entry follows `after`. A request without an answer is still queued, until its deadline."""
        rows = await self._redis.xrevrange(answer_key(self._id), count=1)
        self._is_taken = bool(rows)
        return any(
            unpack_entry(fields[ENTRY_FIELD]).kind == "end" and _order(after) >= _order(entry_id.decode())
            for entry_id, fields in rows
        )

    async def leave(self) -> None:
        """End the connection: a stream that can be resumed lingers, any other request is removed."""
        if self.is_refused:
            return
        with suppress(RedisError, OSError):  # every key expires
            async with self._redis.pipeline(transaction=False) as pipe:
                if self._linger and self._is_named and not self._has_no_worker:
                    for name in (client_key(self._id), answer_key(self._id), resumable_key(self._id)):
                        pipe.expire(name, self._linger)
                else:
                    pipe.delete(client_key(self._id), answer_key(self._id), resumable_key(self._id))
                    pipe.hdel(waiting_key(self._tenant), self._id)
                    pipe.hdel(streams_key(self._tenant), self._id)
                    if self._queue_key and not self._is_taken:
                        pipe.lrem(self._queue_key, 1, self._raw)
                await pipe.execute()

    def _is_late(self, at: float) -> bool:
        """Return whether a `late` entry is due. It names the stream to the client, who can then resume it."""
        if at - self._last_late < self._patience:
            return False
        self._last_late, self._patience, self._is_named = at, self._timings.interactive_late, True
        return True

    async def _check_nothing_missed(self, last: str) -> None:
        """Raise NotFound if another reader has dropped entries between `last` and those just read."""
        if _dropped(await self._redis.xinfo_stream(answer_key(self._id)), last):
            raise _stream_gone()

    async def _drop_read(self) -> None:
        entries, size, least = (BEHIND, self._behind_bytes, AT_ONCE) if self._linger else (0, 0, 0)
        if len(self._read) < entries + AT_ONCE and self._read_bytes < size + _DROP_BYTES:
            return
        oldest = b""
        while len(self._read) > entries or (self._read_bytes > size and len(self._read) > least):
            oldest, length = self._read.popleft()
            self._read_bytes -= length
        if oldest:
            await self._redis.xtrim(answer_key(self._id), minid=oldest, approximate=False)

    async def _check(self, at: float, is_served: WorkerCheck, check_client: ClientCheck) -> None:
        """Check, each in its own interval, that the client is connected and that a worker has or may take the request.

        Raises NoWorker, NotBegun, WorkerLost, and the errors of `check_client`.
        """
        if at - self._last_client_check >= _BLOCK_MS / 1000:
            self._last_client_check = at
            await check_client()
        try:
            if at >= self.begin_by:
                raise NotBegun
            if self._is_taken and at - self._last_entry > self._timings.interactive_silence:
                if not await self._is_queued():
                    raise WorkerLost
                self._is_taken = False  # a worker that stopped has put it back
            if not self._is_taken and at - self._last_worker_check >= self._timings.interactive_taken:
                self._last_worker_check = at
                await self._check_queued(is_served)
        except (NoWorker, NotBegun, WorkerLost):  # after those of `check_client`, its clients may still resume
            self._has_no_worker = True
            raise

    async def _renew(self) -> None:
        """Prolong the keys that exist: a stream that was stopped by another process stays stopped."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.expire(client_key(self._id), self.seconds)
            pipe.expire(resumable_key(self._id), self.seconds)
            pipe.expire(answer_key(self._id), max(ANSWER_SECONDS, self._linger))
            await pipe.execute()

    async def _check_queued(self, is_served: WorkerCheck) -> None:
        """Raise WorkerLost if the request has left its queue without an answer, NoWorker if no worker may take it.

        A request that is missing once may be on its way to a worker. A reader that resumes does not know what was
        queued.
        """
        is_queued = not self._queue_key or await self._is_queued()
        self._missed = 0 if is_queued else self._missed + 1
        if self._missed > 1:
            raise WorkerLost
        if not await is_served():
            raise NoWorker

    async def _is_queued(self) -> bool:
        """Return whether the request is in its queue, as far as this reader knows what was queued."""
        async with self.sending():
            return bool(self._queue_key) and await self._redis.lpos(self._queue_key, self._raw) is not None


def _dropped(info: Mapping[str, Any], after: str) -> bool:
    """Return whether entries behind `after` may have been dropped."""
    if not info:
        return after != _START
    first = info["first-entry"]
    return info["entries-added"] > info["length"] and first is not None and _order(after) < _order(first[0].decode())


def _stream_gone() -> NotFound:
    message = "This stream is gone, or cannot be resumed from there."
    return NotFound(message, param="Last-Event-ID", code="stream_gone")


def _order(entry_id: str) -> tuple[int, ...]:
    """Return the numbers of an entry's id, to compare ids by."""
    return tuple(map(int, entry_id.split("-")))
