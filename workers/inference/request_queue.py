"""One queue of requests of interactive clients: what a worker takes of it, and what it holds for each project.

    Redis list ──BLPOP──▶ enter ──▶ place ──▶ answered        a project has so many places, its other requests wait here
                            └── refused: the project has too many requests here, or too large ones

No project waits for another one's requests. While any request waits here, other workers take from the list first.
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

from jobs.inference.interactive import QueuedRequest, queue_key, queue_seconds, unpack_request
from jobs.timings import Timings

log = logging.getLogger(__name__)

HELD_BYTES: Final = 64 << 20  # of one project
#: A list that became empty meanwhile was removed by Redis, with the time at which it expires.
_RETURN: Final = """
redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
"""


@dataclass(slots=True)
class _Held:
    """Requests of one project, and the bytes of their bodies."""

    gate: asyncio.Semaphore
    requests: int = 0
    size: int = 0


class ProjectPlaces:
    """Let each project have `places` requests answered at once, and `waiting` more wait. For one event loop.

    `nobody_waits` is set while no request waits for a place.
    """

    def __init__(self, places: int, waiting: int, held_bytes: int = HELD_BYTES) -> None:
        self._places, self._most, self._held_bytes = places, places + waiting, held_bytes
        self._projects: dict[str, _Held] = {}
        self._waiting = 0
        self.nobody_waits = asyncio.Event()
        self.nobody_waits.set()

    def enter(self, project: str, size: int) -> bool:
        """Count a request of `size` bytes in; return False where the project has too many here already."""
        held = self._projects.get(project) or _Held(asyncio.Semaphore(self._places))
        if held.requests and (held.requests >= self._most or held.size + size > self._held_bytes):
            return False
        self._projects[project] = held
        held.requests += 1
        held.size += size
        self._count(held.requests > self._places)
        return True

    def leave(self, project: str, size: int) -> None:
        """Count out a request that was counted in."""
        held = self._projects[project]
        self._count(-(held.requests > self._places))
        held.requests -= 1
        held.size -= size
        if not held.requests:
            del self._projects[project]

    @asynccontextmanager
    async def place(self, project: str) -> AsyncIterator[None]:
        """Wait for a place of the project, and hold it; for a request that was counted in."""
        async with self._projects[project].gate:
            yield

    def _count(self, change: int) -> None:
        self._waiting += change
        (self.nobody_waits.clear if self._waiting else self.nobody_waits.set)()


class RequestQueue:
    """Take the requests of the queue `name`, and hold at most `limit()` of them. For one event loop.

    `begin` starts the task that answers a request; its last argument says whether the project had room for it. Nothing
    is taken while `listening` is not set.
    """

    def __init__(
        self,
        name: str,
        limit: Callable[[], int],
        places: ProjectPlaces,
        listening: threading.Event,
        begin: Callable[[QueuedRequest, ProjectPlaces, bool], asyncio.Task[None]],
        timings: Timings,
    ) -> None:
        self.name, self.limit = name, limit
        self._places, self._listening, self._begin, self._timings = places, listening, begin, timings
        self.tasks: set[asyncio.Task[None]] = set()
        self._closed = self._is_unavailable = False

    def close(self) -> None:
        """Take no more: redis-py swallows a cancellation while it connects."""
        self._closed = True

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
        """Return one request as soon as it comes, or, while others wait here, all that no other worker has taken."""
        nobody_waits = self._places.nobody_waits
        if not nobody_waits.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(nobody_waits.wait(), self._timings.interactive_look)
                return ()
            taken = await redis.lpop(queue_key(self.name), limit) if self._listening.is_set() else None
            return taken or ()
        found = await redis.blpop([queue_key(self.name)], timeout=self._timings.interactive_take)
        if found and not self._listening.is_set():  # another worker may take what came after `listening` was cleared
            await _return(redis, *found)
            return ()
        return found[1:] if found else ()

    def _admit(self, raw: bytes) -> None:
        if (request := _read(raw)) is None:
            return
        entered = self._places.enter(request.tenant, len(raw))
        task = self._begin(request, self._places, entered)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if entered:
            task.add_done_callback(lambda _: self._places.leave(request.tenant, len(raw)))


async def _return(redis: Any, line: bytes, raw: bytes) -> None:
    if request := _read(raw):
        await redis.eval(_RETURN, 1, line, raw, queue_seconds(request))


def _read(raw: bytes) -> QueuedRequest | None:
    try:
        return unpack_request(raw)
    except msgspec.MsgspecError:
        log.warning("interactive_request_unreadable")
        return None
