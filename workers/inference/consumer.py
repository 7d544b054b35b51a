"""The consumer of interactive requests, which go to the engine of the batches before these, and without Celery.

    request queue ──▶ turn ──▶ host.shared_turn ──▶ engine.answer | engine.stream ──▶ answer writer
                        └── four times a second: are the clients still there? if not, the engine stops

A paused worker leaves its queues to other workers. A client of a paused queue, model or project gets a refusal. A
worker that stops takes no more requests, puts those back into their queue whose turn has not come, and finishes the
others.

The consumer runs on the loop of the engine host. Each request is executed once: its client gets every failure, and may
retry. `jobs.inference.interactive` describes the messages.
"""

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from jobs.clock import now
from jobs.errors import Overloaded
from jobs.fleet.routing import model_of
from jobs.inference.admission import MAX_UNREAD_BYTES, max_stream_bytes
from jobs.inference.interactive import (
    LINE_PRIORITY,
    PRIORITY,
    SHADOW_PRIORITY,
    AnswerEntry,
    QueuedRequest,
    client_key,
    connect,
    routed_queue,
    shadow_queue,
)
from jobs.ledger.pauses import Paused
from jobs.logs import about
from jobs.retrieval import searches
from jobs.settings import Settings
from jobs.timings import Timings
from workers.engines.port import Answer, EngineBusy, EngineDead, EngineError, EngineFault, Request, Suspect, refusal
from workers.inference.answer_meter import AnswerMeter
from workers.inference.answer_writer import AnswerWriter, end_of
from workers.inference.request_queue import HandedOver, ProjectLimiter, RequestQueue
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.heartbeat import UnderWay
from workers.runtime.usage_counter import UsageCounter

log = logging.getLogger(__name__)

MAX_REQUESTS: Final = 1024  # requests of one queue in a worker, answered or waiting
ROUTED_LINES: Final = 16  # of other queues' batches at once, where the throttle allows as many
_PAUSED: Final = end_of(refusal(503, "The operator has paused this model.", code="paused"), 1.0)
_FULL: Final = end_of(refusal(503, Overloaded().message, code=Overloaded.code), Overloaded.retry_after)

LocalHandler = Callable[[QueuedRequest, int], Awaitable[Answer]]  # of a request, with the priority for the engine


@dataclass(frozen=True, slots=True)
class ConsumerLimits:
    """Bounds of what one worker holds for interactive clients."""

    concurrent: int = (
        48  # requests of one project that are answered at once: fewer than the first window of an HTTP server
    )
    waiting: int = 256  # further requests of one project
    unread: int = 16_384  # entries of one stream
    unread_bytes: int = MAX_UNREAD_BYTES
    project_unread_bytes: int = 128 << 20  # of all streams of a project

    @classmethod
    def of(cls, config: Settings) -> "ConsumerLimits":
        return cls(waiting=config.interactive_waiting, project_unread_bytes=max_stream_bytes(config))


class InteractiveConsumer:
    """Answer the interactive requests of one queue. `serve` runs until it is cancelled, or `close` is called.

    `handlers` answer the requests of some URLs in place of the engine.
    """

    def __init__(
        self,
        host: EngineHost,
        url: str,
        queue: str,
        limits: ConsumerLimits = ConsumerLimits(),
        timings: Timings = Timings(),
        handlers: Mapping[str, LocalHandler] | None = None,
        paused: Callable[[], Paused] = Paused,
        under_way: UnderWay | None = None,
        usage: UsageCounter | None = None,
    ) -> None:
        self.queue = queue
        self._host, self._url, self._limits, self._timings = host, url, limits, timings
        self._handlers = handlers or {}
        self._paused, self._under_way, self._usage = paused, under_way or UnderWay(), usage
        self._left: dict[str, asyncio.Event] = {}  # by request; set when no client waits for the answer any more
        self._given_up: dict[str, AnswerEntry] = {}  # by request: the end of a stream that would hold too much memory
        self._listening = threading.Event()
        self._listening.set()
        lines = routed_queue(queue, LINE_PRIORITY)
        names = [queue]
        if self._handlers:
            names += [searches.search_queue(queue), searches.rerank_queue(queue), routed_queue(queue)]
        self.queues = [self._new_queue(name, lambda: MAX_REQUESTS) for name in names]
        self.queues.append(self._new_queue(shadow_queue(queue), self._line_limit))
        if self._handlers:
            self.queues.append(self._new_queue(lines, self._line_limit))
        self._reviving: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[Any] | None = None
        self._redis: Any
        self._answers: AnswerWriter

    def _new_queue(self, name: str, limit: Callable[[], int]) -> RequestQueue:
        limiter = ProjectLimiter(self._limits.concurrent, self._limits.waiting)
        return RequestQueue(name, limit, limiter, self._listening, self._begin, self._timings)

    def _line_limit(self) -> int:
        """Return how many lines of other queues' batches, or requests for shadows, may be here: see the throttle."""
        limit = self._host.throttle.limit
        return ROUTED_LINES if limit is None else max(1, min(ROUTED_LINES, limit))

    def listen(self, is_on: bool) -> None:
        """Take new requests, or leave them to other workers. From any thread."""
        (self._listening.set if is_on else self._listening.clear)()

    async def serve(self) -> None:
        if not self._url:
            log.warning("interactive_without_redis")
            return
        self._serving = asyncio.current_task()
        limits = self._limits
        async with connect(self._url) as redis:
            self._redis = redis
            self._answers = AnswerWriter(redis, limits.unread, limits.unread_bytes, limits.project_unread_bytes)
            watching = asyncio.create_task(self._watch_all(redis))
            try:
                await asyncio.gather(*(queue.run(redis) for queue in self.queues))
                await asyncio.gather(*(task for queue in self.queues for task in queue.tasks), return_exceptions=True)
            finally:
                running = {watching}.union(self._reviving, *(queue.tasks for queue in self.queues))
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def hand_over(self) -> None:
        """Take no more requests, and put those back whose turn has not come, for other workers. On the host's loop."""
        for queue in self.queues:
            queue.close()

    async def close(self, seconds: float = 0.0) -> None:
        """Hand over, finish what is being answered, and after `seconds` refuse the rest: its clients ask again."""
        self.hand_over()
        if self._serving is not None:
            await asyncio.wait((self._serving,), timeout=seconds)
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def _begin(self, queue: RequestQueue, request: QueuedRequest, entered: bool) -> asyncio.Task[None]:
        model = _model_of(request)
        needed = model_of(self.queue, model)
        stopped = self._paused().stops(self.queue, model, request.tenant, needed)
        ended = self._under_way.begin(self.queue, needed, request.tenant)  # at once: a drain may be looking
        refused = _PAUSED if stopped else None if entered else _FULL
        task = asyncio.create_task(self._serve(queue, request, refused))
        task.add_done_callback(lambda _: ended())
        return task

    async def _serve(self, queue: RequestQueue, request: QueuedRequest, refused: AnswerEntry | None) -> None:
        with about(request_id=request.request_id, job_id=request.job_id):
            await self._answer(queue, request, refused)

    async def _answer(self, queue: RequestQueue, request: QueuedRequest, refused: AnswerEntry | None) -> None:
        try:
            awaited = now() < request.deadline and await self._answers.begin(request)
            try:
                end = (refused or await self._answer_client(request, queue)) if awaited else None
            except HandedOver:
                await queue.requeue(self._redis, request)
            else:
                await self._answers.finish(request, end)
        except asyncio.CancelledError:
            lost = end_of(refusal(503, "This worker is going down.", code="worker_lost"), 1.0)
            with suppress(RedisError, OSError):
                await self._answers.finish(request, lost)
            raise
        except (RedisError, OSError) as error:
            log.warning("interactive_answer_lost", extra={"request": request.id, "error": str(error)})
        finally:
            self._answers.forget(request)

    async def _answer_client(self, request: QueuedRequest, queue: RequestQueue) -> AnswerEntry | None:
        """Return the end of the answer; None when its client has left."""
        watch = asyncio.create_task(self._watch(request))  # it begins first
        work = asyncio.create_task(self._answer_in_turn(request, queue))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            watch.result()
            if given_up := self._given_up.get(request.id):
                return given_up
            if now() >= request.deadline:
                return end_of(refusal(408, "The model did not answer in time.", code="timeout"))
            log.info("interactive_client_left", extra={"request": request.id})
            return None
        finally:
            await _cancel(work, watch)
            self._given_up.pop(request.id, None)

    async def _watch(self, request: QueuedRequest) -> None:
        """Return when no client waits any more; meanwhile write the entries `alive`."""
        left = self._left[request.id] = asyncio.Event()
        try:
            while (rest := request.deadline - now()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(self._timings.interactive_alive, rest)):
                        await left.wait()
                        return
                await self._answers.send(request, AnswerEntry("alive"))
        finally:
            del self._left[request.id]

    async def _watch_all(self, redis: Any) -> None:
        """Check the presence of all clients in one round trip, again and again."""
        while True:
            await asyncio.sleep(self._timings.interactive_look)
            ids = list(self._left)
            if not ids:
                continue
            try:
                values = await redis.mget([client_key(request_id) for request_id in ids])
            except (RedisError, OSError):
                continue  # the next entry that is written meets the same error, and raises it
            for request_id, value in zip(ids, values, strict=True):
                if value is None and (left := self._left.get(request_id)):
                    left.set()

    async def _answer_in_turn(self, request: QueuedRequest, queue: RequestQueue) -> AnswerEntry:
        async with queue.limiter.turn(request.tenant):
            return await self._ask(request, queue.name in (self.queue, shadow_queue(self.queue)))

    async def _ask(self, request: QueuedRequest, is_whole: bool) -> AnswerEntry:
        """Return the end of the answer. A part of another request (not `is_whole`) is counted with that one."""
        body: dict[str, Any] = msgspec.json.decode(request.body)
        meter = AnswerMeter(request, body, self._usage if is_whole else None)
        owner = request.priority, request.tenant, request.job_id
        engine_request = Request(request.url, meter.engine_body(), request.id, *owner, key_id=request.key_id)
        generation = self._host.generation
        try:
            if request.url in self._handlers:  # an isolated line may hold the engine, and wait for this request
                return end_of(await self._handlers[request.url](request, PRIORITY))
            async with self._place(request), self._host.shared_turn():
                generation = self._host.generation
                return end_of(await self._ask_engine(request, engine_request, meter))
        except EngineBusy as busy:
            refused = refusal(503, "The engine is busy. Ask again in a moment.", code="engine_busy")
            return end_of(refused, busy.retry_after or 1.0)
        except EngineDead as death:
            self._host.suspect(Suspect(request.id, str(body.get("model"))))
            self._revive(generation, death)
            return end_of(refusal(503, "The engine ended while it answered. Ask again.", code="engine_died"), 5.0)
        except EngineFault as fault:
            answer = fault.answer or refusal(500, f"The engine gave no answer: {fault}", code="engine_error")
            return end_of(meter.finish(answer))
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  a client must not wait for what will never come
            last = traceback.extract_tb(error.__traceback__)[-1]
            location = f"{last.filename}:{last.lineno}"  # without the error's text, which may quote the prompt
            fields = {"request": request.id, "error": type(error).__name__, "at": location}
            log.error("interactive_failed", extra=fields)  # noqa: TRY400
            return end_of(refusal(500, "The engine gave no answer.", code="engine_error"))
        finally:
            meter.close()

    @asynccontextmanager
    async def _place(self, request: QueuedRequest) -> AsyncIterator[None]:
        """Keep lines of batches away while a client is answered; wait, as they do, for the place of a shadow."""
        throttle = self._host.throttle
        if request.priority == SHADOW_PRIORITY:
            await throttle.acquire()
            try:
                yield
            finally:
                throttle.release()
        else:
            with throttle.client() if request.priority <= PRIORITY else nullcontext():
                yield

    async def _ask_engine(self, request: QueuedRequest, engine_request: Request, meter: AnswerMeter) -> Answer:
        async def emit(chunk: bytes) -> None:
            shown = meter.take_chunk(chunk)
            if shown is not None and (given_up := await self._answers.send_chunk(request, shown)):
                self._given_up[request.id] = given_up
                with suppress(KeyError):  # the watch has ended at this moment
                    self._left[request.id].set()
                await asyncio.Event().wait()  # until this task is cancelled

        engine = self._host.engine
        try:
            answering = engine.stream(engine_request, emit) if request.stream else engine.answer(engine_request)
            return meter.finish(await answering)
        except asyncio.CancelledError:  # the engine has had the prompt
            meter.cancel()
            raise

    def _revive(self, generation: int, death: EngineDead) -> None:
        async def revive() -> None:
            try:
                await self._host.revive(generation, death)
            except (GaveUp, EngineError):
                log.warning("engine_not_revived")

        task = asyncio.create_task(revive())
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended: redis-py swallows a cancellation now and then."""
    left = set(tasks)
    while left := {task for task in left if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.3)
    await asyncio.gather(*tasks, return_exceptions=True)


class _Named(msgspec.Struct):
    """The part of a request's body that names its model."""

    model: str = ""


def _model_of(request: QueuedRequest) -> str:
    try:
        return msgspec.json.decode(request.body, type=_Named).model
    except msgspec.MsgspecError:
        return ""
