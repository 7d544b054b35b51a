"""Write the answers of one worker to Redis, and give up streams that would fill it.

    engine ──▶ chunk ──XADD──▶ answer:<request> ──▶ API ──▶ client
                 └── Redis is full, or the client reads too slowly: the stream is given up

Chunks that the client has not read are counted, for each stream and each project. A stream that can be resumed also
keeps chunks that were read, and these are counted too.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import BrokerFull
from jobs.inference.admission import BLOCK, FULL, UNREAD_WHEN_FULL, MemoryProbe, count_block, count_end
from jobs.inference.interactive import (
    ANSWER_SECONDS,
    AT_ONCE,
    BEHIND,
    BEHIND_PART,
    ENTRY_FIELD,
    AnswerEntry,
    QueuedRequest,
    answer_key,
    client_key,
    pack,
    waiting_key,
)
from workers.engines.port import Answer, refusal

_BROKER_FULL = refusal(503, BrokerFull().message, code=FULL)
_TOO_SLOW = refusal(408, "The stream was read too slowly.", code="client_too_slow")


def end_of(answer: Answer, retry_after: float | None = None) -> AnswerEntry:
    """Return the entry that ends an answer."""
    usage = answer.usage
    tokens = usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens
    return AnswerEntry("end", answer.body, answer.status, retry_after, usage=tokens if any(tokens) else ())


_END_BROKER_FULL = end_of(_BROKER_FULL, BrokerFull.retry_after)


@dataclass(slots=True)
class _Unread:
    """The entries of a stream in Redis: their number, the bytes of each, oldest first, and the sum of the bytes."""

    length: int = 0
    sizes: deque[int] = field(default_factory=deque)
    total: int = 0
    counted: int = 0  # bytes that are counted to the project


class AnswerWriter:
    """Write the entries of answers. Every method raises RedisError and OSError.

    `chunks` and `size` bound the unread entries and bytes of one stream, `project_size` the bytes of a project.
    """

    def __init__(self, redis: Any, chunks: int, size: int, project_size: int) -> None:
        self._redis, self._memory = redis, MemoryProbe(redis)
        self._chunks, self._size, self._project_size = chunks, size, project_size
        self._unread: dict[str, _Unread] = {}  # by request

    async def begin(self, request: QueuedRequest) -> bool:
        """Write the entry `taken`; return False when no client waits for the request."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(client_key(request.id))
            pipe.hdel(waiting_key(request.tenant), request.id)
            _add(pipe, request, pack(AnswerEntry("taken")))
            awaited, *_ = await pipe.execute()
            return bool(awaited)

    async def send(self, request: QueuedRequest, entry: AnswerEntry) -> None:
        """Write an entry and count it as unread. The reader drops the oldest entries after it has read them."""
        raw = pack(entry)
        async with self._redis.pipeline(transaction=False) as pipe:
            _add(pipe, request, raw)
            pipe.xlen(answer_key(request.id))
            *_, length = await pipe.execute()
        unread = self._unread.setdefault(request.id, _Unread())
        unread.sizes.append(len(raw))
        unread.total += len(raw)
        unread.length = int(length)
        while len(unread.sizes) > unread.length:
            unread.total -= unread.sizes.popleft()

    async def send_chunk(self, request: QueuedRequest, chunk: bytes) -> AnswerEntry | None:
        """Write a chunk of a stream; return the entry that ends the stream where it is given up, else None."""
        is_full = await self._memory.is_full()
        if is_full and len(chunk) > UNREAD_WHEN_FULL:
            return _END_BROKER_FULL
        await self.send(request, AnswerEntry("chunk", chunk))
        unread = self._unread[request.id]
        # A resumable stream was counted to its project at its admission.
        while not request.linger and unread.total > unread.counted + BLOCK:
            unread.counted += BLOCK
            if not await count_block(self._redis, request.tenant, request.id, self._project_size):
                return end_of(_TOO_SLOW)
        return self._end_of_unread(request, unread, is_full=is_full)

    async def finish(self, request: QueuedRequest, end: AnswerEntry | None) -> None:
        """Write the `end` of an answer, or a refusal where Redis is full. None: the client has left."""
        if end and len(end.body) > UNREAD_WHEN_FULL and await self._memory.is_full():
            end = _END_BROKER_FULL
        if end:
            await self.send(request, end)
        if request.linger:
            unread = self._unread.get(request.id) or _Unread()
            await count_end(self._redis, request, self._size, unread.total)

    def forget(self, request: QueuedRequest) -> None:
        """Forget the counts of a request."""
        self._unread.pop(request.id, None)

    def _end_of_unread(self, request: QueuedRequest, unread: _Unread, *, is_full: bool) -> AnswerEntry | None:
        chunks = self._chunks + (BEHIND + AT_ONCE if request.linger else 0)
        if unread.length > chunks or unread.total > self._size:
            return end_of(_TOO_SLOW)
        behind = self._size // BEHIND_PART if request.linger else 0
        return _END_BROKER_FULL if is_full and unread.total > behind + UNREAD_WHEN_FULL else None


def _add(pipe: Any, request: QueuedRequest, raw: bytes) -> None:
    name = answer_key(request.id)
    pipe.xadd(name, {ENTRY_FIELD: raw})
    pipe.expire(name, max(ANSWER_SECONDS, request.linger))
