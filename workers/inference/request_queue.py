"""A worker's end of one queue of interactive requests, and its limits for each project.

    Redis list ──BLPOP──▶ enter ──▶ turn ──▶ answered        so many requests of a project at once, the others wait here
                            └── refused: the project has too many requests here, or too large ones

No project waits for the requests of another one. While any request waits here, other workers take from the list first.
When the worker stops, it puts the requests that still wait for their turn back into the list, for other workers.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from jobs.inference.interactive import QueuedRequest, pack, queue_key, queue_seconds, unpack_request
from jobs.timings import Timings

log = logging.getLogger(__name__)

PROJECT_BYTES: Final = 64 << 20  # of the requests of one project
#: Redis removes a list that becomes empty, and with it the time at which the list expires.
_RETURN: Final = """
redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
"""


class HandedOver(Exception):
    """The worker stops before the turn of a request has come: another worker is to answer it."""


@dataclass(slots=True)
class _Held:
    """The requests of one project, and the bytes of their bodies."""

    gate: asyncio.Semaphore
    requests: int = 0
    size: int = 0


class ProjectLimiter:
    """Answer `concurrent` requests of each project at once, and let `waiting` more wait. For one event loop.

    `none_waiting` is set while no request waits for its turn.
    """

    def __init__(self, concurrent: int, waiting: int, max_bytes: int = PROJECT_BYTES) -> None:
        self._concurrent, self._max_requests, self._max_bytes = concurrent, concurrent + waiting, max_bytes
        self._projects: dict[str, _Held] = {}
        self._waiting = 0
        self._closed = False
        self.none_waiting = asyncio.Event()
        self.none_waiting.set()

    def enter(self, project: str, size: int) -> bool:
        """Count in a request of `size` bytes; return False where the project has too many here already."""
        held = self._projects.get(project) or _Held(asyncio.Semaphore(self._concurrent))
        if held.requests and (held.requests >= self._max_requests or held.size + size > self._max_bytes):
            return False
        self._projects[project] = held
        held.requests += 1
        held.size += size
        self._count(held.requests > self._concurrent)
        return True

    def leave(self, project: str, size: int) -> None:
        """Count out a request that was counted in."""
        held = self._projects[project]
        self._count(-(held.requests > self._concurrent))
        held.requests -= 1
        held.size -= size
        if not held.requests:
            del self._projects[project]

    @asynccontextmanager
    async def turn(self, project: str) -> AsyncIterator[None]:
        """Wait for the turn of a request that was counted in, and take one of its project's slots.

        Raises HandedOver, once `close` was called.
        """
        async with self._projects[project].gate:
            if self._closed:
                raise HandedOver
            yield

    def close(self) -> None:
        """Begin no more turns. Who waits for one gets HandedOver: each passes the free slot on to the next."""
        self._closed = True
        for held in self._projects.values():
            held.gate.release()

    def _count(self, change: int) -> None:
        self._waiting += change
        (self.none_waiting.clear if self._waiting else self.none_waiting.set)()


class RequestQueue:
    """Take requests from the queue `name`, and hold at most `limit()` of them. For one event loop.

    `begin` starts the task that answers a request; its last argument says whether the project may have it here. No
    request is taken while `listening` is not set.
    """

    def __init__(
        self,
        name: str,
        limit: Callable[[], int],
        limiter: ProjectLimiter,
        listening: threading.Event,
        begin: Callable[["RequestQueue", QueuedRequest, bool], asyncio.Task[None]],
        timings: Timings,
    ) -> None:
        self.name, self.limit, self.limiter = name, limit, limiter
        self._listening, self._begin, self._timings = listening, begin, timings
        self.tasks: set[asyncio.Task[None]] = set()
        self._closed = self._is_unavailable = False

    def close(self) -> None:
        """Take no more requests, and begin no more turns.

        A flag, because redis-py swallows a cancellation while it connects.
        """
        self._closed = True
        self.limiter.close()

    async def run(self, redis: Any) -> None:
        """Take requests until the queue is closed."""
        while not self._closed:
            free = self.limit() - len(self.tasks)
            if not self._listening.is_set():
                await asyncio.sleep(self._timings.interactive_look)
            elif free <= 0:
                wait = self._timings.interactive_limit_look
                await asyncio.wait(self.tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._take(redis, free)

    async def _take(self, redis: Any, limit: int) -> None:
        try:
            taken = await self._next(redis, limit)
        except (RedisError, OSError) as error:
            if not self._is_unavailable:
                log.warning("interactive_broker_unavailable", extra={"error": str(error)})
            self._is_unavailable = True
            await asyncio.sleep(self._timings.interactive_retry)
            return
        self._is_unavailable = False
        for raw in taken:
            self._admit(raw)

    async def _next(self, redis: Any, limit: int) -> Sequence[bytes]:
        """Return one request as soon as it comes; while requests wait here, those that no other worker has taken."""
        none_waiting = self.limiter.none_waiting
        if not none_waiting.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(none_waiting.wait(), self._timings.interactive_look)
                return ()
            taken = await redis.lpop(queue_key(self.name), limit) if self._listening.is_set() else None
            return taken or ()
        popped = await redis.blpop([queue_key(self.name)], timeout=self._timings.interactive_take)
        if popped and (self._closed or not self._listening.is_set()):  # it came late: for another worker
            if request := _read(popped[1]):
                await self.requeue(redis, request)
            return ()
        return popped[1:] if popped else ()

    async def requeue(self, redis: Any, request: QueuedRequest) -> None:
        """Put a request at the head of its queue again, where another worker takes it. Raises RedisError, OSError."""
        await redis.eval(_RETURN, 1, queue_key(self.name), pack(request), queue_seconds(request))

    def _admit(self, raw: bytes) -> None:
        if (request := _read(raw)) is None:
            return
        entered = self.limiter.enter(request.tenant, len(raw))
        task = self._begin(self, request, entered)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if entered:
            task.add_done_callback(lambda _: self.limiter.leave(request.tenant, len(raw)))


def _read(raw: bytes) -> QueuedRequest | None:
    try:
        return unpack_request(raw)
    except msgspec.MsgspecError:
        log.warning("interactive_request_unreadable")
        return None
