"""The answers of one worker to interactive clients, as they are written to Redis, and when a stream is given up.

    engine ──▶ chunk ──XADD──▶ answer:<request> ──▶ API ──▶ client
                 └── Redis is full, or the client reads too slowly: the stream is given up

The chunks that Redis holds because the client has not read them are counted, by stream and by project. Of a stream that
can be resumed, chunks that were read stay there for a while. They are counted too.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import BrokerFull
from jobs.inference.admission import BLOCK, FULL, UNREAD_WHEN_FULL, MemoryProbe, count_block, count_finished
from jobs.inference.interactive import (
    ANSWER_SECONDS,
    AT_ONCE,
    BEHIND,
    BEHIND_PART,
    PIECE,
    Piece,
    Question,
    answer,
    asking,
    pack,
    project_waiting,
)
from workers.engines.port import Answer, refusal

_BROKER_FULL = refusal(503, BrokerFull().message, code=FULL)
_TOO_SLOW = refusal(408, "The stream was read too slowly.", code="client_too_slow")


def end_of(said: Answer, retry_after: float | None = None) -> Piece:
    """Return the piece that ends an answer."""
    return Piece("end", said.body, said.status, retry_after)


_END_BROKER_FULL = end_of(_BROKER_FULL, BrokerFull.retry_after)


@dataclass(slots=True)
class _Unread:
    """What Redis holds of a stream: the number of its pieces, the bytes of each, oldest first, and their sum."""

    length: int = 0
    sizes: deque[int] = field(default_factory=deque)
    total: int = 0
    counted: int = 0  # of these bytes, to the project


class AnswerWriter:
    """Write the pieces of answers. Every method raises RedisError and OSError.

    `chunks` and `size` (bytes) bound what is unread of one stream, `project_size` of all streams of a project.
    """

    def __init__(self, redis: Any, chunks: int, size: int, project_size: int) -> None:
        self._redis, self._memory = redis, MemoryProbe(redis)
        self._chunks, self._size, self._project_size = chunks, size, project_size
        self._unread: dict[str, _Unread] = {}  # by request

    async def begin(self, question: Question) -> bool:
        """Write that the request is being answered; return False when no client waits for it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(asking(question.id))
            pipe.hdel(project_waiting(question.tenant), question.id)
            _add(pipe, question, pack(Piece("taken")))
            awaited, *_ = await pipe.execute()
            return bool(awaited)

    async def send(self, question: Question, piece: Piece) -> None:
        """Write a piece, and count it as unread. Clients drop the oldest pieces when they have read them."""
        raw = pack(piece)
        async with self._redis.pipeline(transaction=False) as pipe:
            _add(pipe, question, raw)
            pipe.xlen(answer(question.id))
            *_, length = await pipe.execute()
        unread = self._unread.setdefault(question.id, _Unread())
        unread.sizes.append(len(raw))
        unread.total += len(raw)
        unread.length = int(length)
        while len(unread.sizes) > unread.length:
            unread.total -= unread.sizes.popleft()

    async def send_chunk(self, question: Question, chunk: bytes) -> Piece | None:
        """Write a chunk of a stream; return how the stream is given up, None if it goes on."""
        is_full = await self._memory.is_full()
        if is_full and len(chunk) > UNREAD_WHEN_FULL:
            return _END_BROKER_FULL
        await self.send(question, Piece("chunk", chunk))
        unread = self._unread[question.id]
        # A stream that can be resumed is counted to its project as a whole when it is admitted.
        while not question.linger and unread.total > unread.counted + BLOCK:
            unread.counted += BLOCK
            if not await count_block(self._redis, question.tenant, question.id, self._project_size):
                return end_of(_TOO_SLOW)
        return self._end_of_unread(question, unread, is_full=is_full)

    async def finish(self, question: Question, end: Piece | None) -> None:
        """Write the end of an answer, or that there is no memory for it, unless `end` is None: its client has left."""
        if end and len(end.body) > UNREAD_WHEN_FULL and await self._memory.is_full():
            end = _END_BROKER_FULL
        if end:
            await self.send(question, end)
        if question.linger:
            unread = self._unread.get(question.id) or _Unread()
            await count_finished(self._redis, question, self._size, unread.total)

    def forget(self, question: Question) -> None:
        """Count nothing of this request any more."""
        self._unread.pop(question.id, None)

    def _end_of_unread(self, question: Question, unread: _Unread, *, is_full: bool) -> Piece | None:
        chunks = self._chunks + (BEHIND + AT_ONCE if question.linger else 0)
        if unread.length > chunks or unread.total > self._size:
            return end_of(_TOO_SLOW)
        behind = self._size // BEHIND_PART if question.linger else 0
        return _END_BROKER_FULL if is_full and unread.total > behind + UNREAD_WHEN_FULL else None


def _add(pipe: Any, question: Question, raw: bytes) -> None:
    name = answer(question.id)
    pipe.xadd(name, {PIECE: raw})
    pipe.expire(name, max(ANSWER_SECONDS, question.linger))
