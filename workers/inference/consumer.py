"""Those who wait at a screen: their questions go to the same engine as the batches, before them, without Celery.

    line of the queue ──BLPOP──▶ place ──▶ host.company ──▶ engine.answer | engine.stream ──▶ pieces
                                   └── four times a second: are the clients still there? if not, the engine stops

Places are each project's own. What has none yet waits here and not in the line, so that others' questions behind it
are reached; a project that has too many here is refused. While any wait here, other workers are let take first.

A worker that is paused leaves the line to others; what is paused otherwise (queue, model, project) is told so.

It runs on the engine host's own loop. A question is asked once: whatever breaks is told to the client, who may ask
again. See `jobs.inference.interactive` for what passes between.
"""

import asyncio
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import msgspec
from redis.exceptions import RedisError

from jobs.clock import now
from jobs.errors import BrokerFull, Overloaded
from jobs.inference.admission import count_block, count_finished
from jobs.inference.broker_memory import UNREAD_WHEN_FULL, MemoryProbe
from jobs.inference.interactive import (
    ALIVE_SECONDS,
    ANSWER_SECONDS,
    LINE_PRIORITY,
    PIECE,
    PRIORITY,
    Piece,
    Question,
    answer,
    asking,
    connect,
    kept_in_line,
    line_of,
    pack,
    project_waiting,
    routed,
    unpack_question,
)
from jobs.ledger.pauses import Paused
from jobs.retrieval import searches
from workers.engines.port import Answer, EngineBusy, EngineDead, EngineError, EngineFault, Request, Suspect, refusal
from workers.inference.project_places import ProjectPlaces
from workers.inference.unread import NO_MEMORY, TOO_SLOW, Unread
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.heartbeat import UnderWay

log = logging.getLogger(__name__)

PLACES = 48  # of one project, answered at once by one worker: fewer than the first window of an HTTP server
HELD = 1024  # questions of one line that a worker answers or has waiting
LINES = 16  # answered at once of other queues' batches, where there is room for so many
UNREAD = 16_384  # pieces of one stream
UNREAD_BYTES = 8 << 20
MOST_HELD = 128 << 20  # bytes of a project's streams
_TAKE_SECONDS = 1.0
_AWAY_SECONDS = 1.0
_LOOK_SECONDS = 0.25
#: A line that was empty meanwhile was forgotten, with when it ends.
_PUT_BACK = """
redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
"""
_ROOM_SECONDS = 0.05  # there may be more room before one is answered: whoever had it taken away has left


Own = Callable[[Question, int], Awaitable[Answer]]  # a question and the priority of what it asks the engine


class Desk:
    """Serves one queue's line. `serve` runs until it is cancelled, or `close` is called."""

    def __init__(
        self,
        host: EngineHost,
        url: str,
        queue: str,
        places: int = PLACES,
        waiting: int = 256,
        own: Mapping[str, Own] | None = None,
        unread: int = UNREAD,
        unread_bytes: int = UNREAD_BYTES,
        most_held: int = MOST_HELD,
        off: Callable[[], Paused] = Paused,
        under_way: UnderWay | None = None,
    ) -> None:
        self.queue = queue
        self._own = own or {}  # questions that are not the engine's, by URL
        self._host, self._url = host, url
        self._off, self._under_way = off, under_way or UnderWay()
        self._unread = Unread(unread, unread_bytes)
        self._most_held = most_held
        self._left: dict[str, asyncio.Event] = {}  # by question, set when nobody waits for it any more
        self._given_up: dict[str, Answer] = {}  # streams that hold too much memory, and what their clients are told
        self._lines = routed(queue, LINE_PRIORITY)
        also = (searches.line(queue), searches.rerank_line(queue), routed(queue), self._lines) if self._own else ()
        self._tasks: dict[str, set[asyncio.Task[None]]] = {line: set() for line in (queue, *also)}
        self._places = {line: ProjectPlaces(places, waiting) for line in self._tasks}
        self._reviving: set[asyncio.Task[None]] = set()
        self._wanted = threading.Event()
        self._wanted.set()
        self._closing = False
        self._serving: asyncio.Task[Any] | None = None
        self._redis: Any = None
        self._memory: MemoryProbe

    def listen(self, wanted: bool) -> None:
        """Take new questions, or leave them to other workers. From any thread."""
        (self._wanted.set if wanted else self._wanted.clear)()

    async def serve(self) -> None:
        if not self._url:
            log.warning("interactive_without_redis")
            return
        self._serving = asyncio.current_task()
        async with connect(self._url) as self._redis:
            self._memory = MemoryProbe(self._redis)
            watching = asyncio.create_task(self._watch_all())
            try:
                await asyncio.gather(*(self._take_all(name, tasks) for name, tasks in self._tasks.items()))
            finally:
                running = {watching}.union(self._reviving, *self._tasks.values())
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        """Take nothing more, and tell those who wait to ask another worker."""
        self._closing = True  # redis-py swallows a cancellation while it connects
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def _room(self, name: str) -> int:
        """How many of a line are here at once: of batches' no more than there is room for beside who waits."""
        if name != self._lines:
            return HELD
        most = self._host.courtesy.most
        return LINES if most is None else max(1, min(LINES, most))

    async def _take_all(self, name: str, tasks: set[asyncio.Task[None]]) -> None:
        away = False
        while not self._closing:
            if not self._wanted.is_set():
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            if len(tasks) >= self._room(name):
                await asyncio.wait(tasks, timeout=_ROOM_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                found = await self._next(name, self._room(name) - len(tasks))
            except (RedisError, OSError) as error:
                if not away:
                    log.warning("interactive_broker_away", extra={"error": str(error)})
                away = True
                await asyncio.sleep(_AWAY_SECONDS)
                continue
            away = False
            for raw in found:
                self._begin(name, raw, tasks)

    async def _next(self, name: str, room: int) -> Sequence[bytes]:
        """Take questions out of a line: one as soon as it comes, or all that no other worker has taken meanwhile."""
        nobody_waits = self._places[name].nobody_waits
        if not nobody_waits.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(nobody_waits.wait(), _LOOK_SECONDS)
                return ()
            found = await self._redis.lpop(line_of(name), room) if self._wanted.is_set() else None
            return found or ()
        found = await self._redis.blpop([line_of(name)], timeout=_TAKE_SECONDS)
        if found and not self._wanted.is_set():  # since it began to wait; there may be others who take it
            await self._put_back(*found)
            return ()
        return found[1:] if found else ()

    async def _put_back(self, line: bytes, raw: bytes) -> None:
        if question := _read(raw):
            await self._redis.eval(_PUT_BACK, 1, line, raw, kept_in_line(question))

    def _begin(self, name: str, raw: bytes, tasks: set[asyncio.Task[None]]) -> None:
        question = _read(raw)
        if question is None:
            return
        model, places = _model_of(question), self._places[name]
        stopped = self._off().stops(self.queue, model, question.tenant)
        ended = self._under_way.begin(self.queue, model, question.tenant)  # at once: a drain may be looking
        entered = places.enter(question.tenant, len(raw))
        refused = _PAUSED if stopped else None if entered else _FULL
        task = asyncio.create_task(self._serve(question, places, refused))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: ended())
        if entered:
            task.add_done_callback(lambda _: places.leave(question.tenant, len(raw)))

    async def _serve(self, question: Question, places: ProjectPlaces, refused: Piece | None) -> None:
        try:
            awaited = now() < question.deadline and await self._take(question)
            end = (refused or await self._while_awaited(question, places)) if awaited else None
            await self._finish(question, end)
        except asyncio.CancelledError:
            with suppress(RedisError, OSError):
                await self._finish(question, _end(refusal(503, "This worker is going down.", code="worker_lost"), 1.0))
            raise
        except (RedisError, OSError) as error:
            log.warning("interactive_answer_lost", extra={"request": question.id, "error": str(error)})
        finally:
            self._unread.forget(question.id)

    async def _finish(self, question: Question, end: Piece | None) -> None:
        """Send the end of an answer, or that there is no memory for it, unless `end` is None: its client has left."""
        if end and len(end.body) > UNREAD_WHEN_FULL and await self._memory.is_full():
            end = _NO_MEMORY
        if end:
            await self._send(question, end)
        if question.linger:
            await count_finished(self._redis, question, self._unread.size, self._unread.held(question.id))

    async def _take(self, question: Question) -> bool:
        """Say that it is being answered; False when nobody waits for it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(asking(question.id))
            pipe.hdel(project_waiting(question.tenant), question.id)
            _add(pipe, question, pack(Piece("taken")))
            awaited, *_ = await pipe.execute()
            return bool(awaited)

    async def _while_awaited(self, question: Question, places: ProjectPlaces) -> Piece | None:
        """The end of the answer; None when its client has left."""
        watch = asyncio.create_task(self._watch(question))  # it begins first
        work = asyncio.create_task(self._ask_in_place(question, places))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            watch.result()
            if refused := self._given_up.get(question.id):
                return _NO_MEMORY if refused is NO_MEMORY else _end(refused)
            if now() >= question.deadline:
                return _end(refusal(408, "The model did not answer in time.", code="timeout"))
            log.info("interactive_client_left", extra={"request": question.id})
            return None
        finally:
            await _ended(work, watch)
            self._given_up.pop(question.id, None)

    async def _watch(self, question: Question) -> None:
        """Returns when nobody waits any more; says meanwhile that the question is being answered."""
        left = self._left[question.id] = asyncio.Event()
        try:
            while (rest := question.deadline - now()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(ALIVE_SECONDS, rest)):
                        await left.wait()
                        return
                await self._send(question, Piece("alive"))
        finally:
            del self._left[question.id]

    async def _watch_all(self) -> None:
        """One look for all who are being answered."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            ids = list(self._left)
            if not ids:
                continue
            try:
                found = await self._redis.mget([asking(question_id) for question_id in ids])
            except (RedisError, OSError):
                continue  # whoever sends a piece meets it too, and tells
            for question_id, value in zip(ids, found, strict=True):
                if value is None and (left := self._left.get(question_id)):
                    left.set()

    async def _ask_in_place(self, question: Question, places: ProjectPlaces) -> Piece:
        async with places.place(question.tenant):
            return await self._ask(question)

    async def _ask(self, question: Question) -> Piece:
        body: dict[str, Any] = msgspec.json.decode(question.body)
        request = Request(question.url, body, question.id, question.priority, question.tenant, question.job_id)
        generation = self._host.generation
        try:
            if question.url in self._own:  # somebody may be alone with the engine, and wait for this
                return _end(await self._own[question.url](question, PRIORITY))
            with self._host.courtesy.asked() if question.priority == PRIORITY else nullcontext():
                async with self._host.company():
                    generation = self._host.generation
                    return _end(await self._engine(question, request))
        except EngineBusy as busy:
            said = refusal(503, "The engine is busy. Ask again in a moment.", code="engine_busy")
            return _end(said, busy.retry_after or 1.0)
        except EngineDead as death:
            self._host.suspect(Suspect(question.id, str(body.get("model"))))
            self._revive(generation, death)
            return _end(refusal(503, "The engine ended while it answered. Ask again.", code="engine_died"), 5.0)
        except EngineFault as fault:
            return _end(fault.answer or refusal(500, f"The engine gave no answer: {fault}", code="engine_error"))
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  a client must not wait for what will never come
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{last.filename}:{last.lineno}"  # its words may be the prompt's
            log.error("interactive_failed", extra={"request": question.id, "error": type(error).__name__, "at": place})  # noqa: TRY400
            return _end(refusal(500, "The engine gave no answer.", code="engine_error"))

    async def _engine(self, question: Question, request: Request) -> Answer:
        if not question.stream:
            return await self._host.engine.answer(request)

        async def emit(chunk: bytes) -> None:
            if refused := await self._chunk(question, chunk):
                self._given_up[question.id] = refused
                with suppress(KeyError):  # the watch has just ended by itself
                    self._left[question.id].set()
                await asyncio.Event().wait()  # until we are stopped, with no more said

        return await self._host.engine.stream(request, emit)

    def _revive(self, generation: int, death: EngineDead) -> None:
        async def revive() -> None:
            try:
                await self._host.revive(generation, death)
            except (GaveUp, EngineError):
                log.warning("engine_not_revived")

        task = asyncio.create_task(revive())
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _chunk(self, question: Question, chunk: bytes) -> Answer | None:
        """Send a chunk; return why its stream is given up, None if it goes on."""
        is_full = await self._memory.is_full()
        if is_full and len(chunk) > UNREAD_WHEN_FULL:
            return NO_MEMORY
        await self._send(question, Piece("chunk", chunk))
        while self._unread.uncounted(question):
            if not await count_block(self._redis, question.tenant, question.id, self._most_held):
                return TOO_SLOW
        return self._unread.refusal(question, is_full=is_full)

    async def _send(self, question: Question, piece: Piece) -> None:
        raw = pack(piece)
        async with self._redis.pipeline(transaction=False) as pipe:
            _add(pipe, question, raw)
            pipe.xlen(answer(question.id))
            *_, length = await pipe.execute()
        self._unread.count(question.id, len(raw), int(length))


def _add(pipe: Any, question: Question, raw: bytes) -> None:
    name = answer(question.id)
    pipe.xadd(name, {PIECE: raw})
    pipe.expire(name, max(ANSWER_SECONDS, question.linger))


def _read(raw: bytes) -> Question | None:
    try:
        return unpack_question(raw)
    except msgspec.MsgspecError:
        log.warning("interactive_question_unreadable")
        return None


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them until they have ended: redis-py swallows a cancellation now and then."""
    left = set(tasks)
    while left := {task for task in left if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.3)
    await asyncio.gather(*tasks, return_exceptions=True)


def _end(said: Answer, retry_after: float | None = None) -> Piece:
    return Piece("end", said.body, said.status, retry_after)


_NO_MEMORY = _end(NO_MEMORY, BrokerFull.retry_after)
_PAUSED = _end(refusal(503, "The operator has paused this model.", code="paused"), 1.0)
_FULL = _end(refusal(503, Overloaded().message, code=Overloaded.code), Overloaded.retry_after)


class _Named(msgspec.Struct):
    """All of a question that says whose engine it is for."""

    model: str = ""


def _model_of(question: Question) -> str:
    try:
        return msgspec.json.decode(question.body, type=_Named).model
    except msgspec.MsgspecError:
        return ""
