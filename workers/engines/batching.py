"""Forward passes of an encoder for many requests together: what the engines of vectors and of scores share.

    requests ──▶ inbox ──tokenise──▶ pool, sorted by length ──micro-batch──▶ forward pass ──▶ answers
                          └──────────── one worker thread ──────────────────────┘

A micro-batch is the input that has waited longest and those of nearly its length, whichever requests they belong
to: little padding, and nothing waits for ever. A cancelled request leaves the pool within one micro-batch.

What nobody foresaw ends the loop over them: all in flight get EngineDead, and so does who asks then, until the next
`start`.
"""

import asyncio
import bisect
import heapq
import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from jobs import memory
from workers.engines.port import (
    Answer,
    Emit,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineFault,
    Request,
    refusal,
    unknown_model,
)

PADDING_RATIO: Final = 1.25  # neighbours in a micro-batch differ by at most this factor
PADDING_TOKENS: Final = 8  # and this much: a forward pass of its own would cost more

#: What forward passes have freed is given back to the machine: MiniLM holds 100 MB during one, and held 430 MB after a
#: few of them. It is done after so many tokens, which single questions seldom have, and in this share of the time.
TRIMMED_TOKENS: Final = 4096
TRIMMING: Final = 0.02

#: oneDNN's kernels that are kept for another forward pass of their shape; 1,024 unless told, about a megabyte each.
KERNELS: Final = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"

log = logging.getLogger(__name__)

T = TypeVar("T")


class Unacceptable(Exception):
    """The request breaks a rule; `answer` says which."""

    def __init__(self, message: str, *, param: str = "input", code: str | None = None) -> None:
        super().__init__(message)
        self.answer = refusal(400, message, param=param, code=code)


def padded_to(tokens: int, longest: int) -> int:
    """How many tokens wide a forward pass over inputs of so many is: of few widths, at most the model's longest.

    On a CPU torch makes kernels for each width and never drops them: with any width memory grew with what came in.
    """
    step = 4 if tokens <= 8 else 8 if tokens <= 32 else 16
    return max(tokens, min(-(-tokens // step) * step, longest))


class Encoder(Protocol):
    """A loaded model. `batch_tokens` are the padded tokens of one forward pass, at most."""

    batch_tokens: int


M = TypeVar("M", bound=Encoder)


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way."""

    asked: Any  # the request, well formed
    priority: int
    answer: asyncio.Future[Answer]
    found: list[Any]  # of each input, once it is computed
    missing: int
    lengths: tuple[int, ...] = ()  # in tokens, of each input
    truncated: list[int] = field(default_factory=list)  # which inputs were cut off

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


Entry = tuple[int, int, Job, int, Any]  # length, order, whose, which of its inputs, its tokens


class Pool:
    """Inputs that wait for a forward pass, sorted by length."""

    def __init__(self) -> None:
        self._sorted: list[Entry] = []
        self._oldest: list[tuple[int, int, Entry]] = []
        self._order = itertools.count()
        self._left: set[int] = set()

    def __len__(self) -> int:
        return len(self._left)

    def jobs(self) -> list[Job]:
        return [entry[2] for entry in self._sorted]

    def add(self, job: Job, which: int, tokens: Sized) -> None:
        entry = (len(tokens), next(self._order), job, which, tokens)
        bisect.insort(self._sorted, entry)
        heapq.heappush(self._oldest, (job.priority, entry[1], entry))
        self._left.add(entry[1])

    def pick(self, budget: int) -> list[Entry]:
        """The next micro-batch, of at most `budget` padded tokens unless one input alone has more."""
        oldest = self._next()
        if oldest is None:
            return []
        first, last = self._window(oldest, budget)
        batch = self._sorted[first:last]
        del self._sorted[first:last]
        self._left.difference_update(entry[1] for entry in batch)
        return [entry for entry in batch if not entry[2].answer.done()]

    def _next(self) -> Entry | None:
        while self._oldest:
            order, entry = self._oldest[0][1:]
            if order in self._left and not entry[2].answer.done():
                return entry
            heapq.heappop(self._oldest)
            self._forget(entry)
        return None

    def _forget(self, entry: Entry) -> None:
        if entry[1] in self._left:
            self._left.discard(entry[1])
            del self._sorted[bisect.bisect_left(self._sorted, entry)]

    def _window(self, oldest: Entry, budget: int) -> tuple[int, int]:
        """Shorter neighbours of `oldest` first, then longer ones while there is room."""
        length, place = oldest[0], bisect.bisect_left(self._sorted, oldest)
        last, most = place + 1, max(1, budget // max(1, length))
        first = max(last - most, bisect.bisect_left(self._sorted, _shortest_with(length), key=_length), 0)
        while last < len(self._sorted):
            longer = self._sorted[last][0]
            if longer > _longest_with(length) or (last + 1 - first) * longer > budget:
                break
            last += 1
        return first, last


def _length(entry: Entry) -> int:
    return entry[0]


def _longest_with(length: int) -> float:
    return length * PADDING_RATIO + PADDING_TOKENS


def _shortest_with(length: int) -> float:
    return (length - PADDING_TOKENS) / PADDING_RATIO


class BatchingEngine(ABC, Generic[M]):
    """One model behind one worker thread. What is particular to its kind of request are the abstract methods."""

    url: str  # what it serves

    def __init__(
        self,
        source: str | Callable[[], str],
        names: Sequence[str],
        *,
        revision: str | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        self._source, self._revision, self._args = source, revision, dict(args or {})
        self._names = tuple(names)
        self._starting = asyncio.Lock()
        self._model: M | None = None
        self._untrimmed, self._untrimmed_until = 0, 0.0  # tokens, and a time of the monotonic clock
        self._thread: ThreadPoolExecutor | None = None
        self._collector: asyncio.Task[None] | None = None
        self._inbox: list[Job] = []
        self._arrived = asyncio.Event()

    @abstractmethod
    def _load(self, source: str) -> M:
        """In the worker thread."""

    @abstractmethod
    def _read(self, model: M, body: Mapping[str, Any]) -> tuple[Any, int]:
        """A body, checked, and how many inputs it has. Raises Unacceptable."""

    @abstractmethod
    def _tokenise(self, model: M, asked: list[Any]) -> list[list[Any]]:
        """The tokens of each input of each request, in the worker thread."""

    def _fit(self, model: M, job: Job, inputs: list[Any]) -> list[Any]:  # noqa: ARG002 (for those that have limits)
        """The tokens of one request, cut off where it asked for that. Raises Unacceptable where they are too many."""
        return inputs

    @abstractmethod
    def _forward(self, model: M, batch: list[Any]) -> Sequence[Any]:
        """In the worker thread."""

    @abstractmethod
    def _write(self, job: Job) -> Answer: ...

    @property
    def models(self) -> tuple[str, ...]:
        return self._names

    async def start(self) -> None:
        async with self._starting:
            if self._collector is not None and not self._collector.done():
                return
            if self._model is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
                self._model = await self._in_thread(self._loaded)
            self._collector = asyncio.create_task(self._collect(self._model))

    async def close(self) -> None:
        async with self._starting:
            if self._collector is not None:
                self._collector.cancel()
                await asyncio.gather(self._collector, return_exceptions=True)
            self._closing()
            if self._thread is not None:
                await asyncio.to_thread(self._thread.shutdown)
            self._model = self._thread = self._collector = None

    def _closing(self) -> None:
        """End what is not the worker thread's."""

    async def answer(self, request: Request) -> Answer:
        if request.body.get("model") not in self._names:
            return unknown_model(str(request.body.get("model")))
        if request.url != self.url:
            return refusal(400, f"This model does not serve {request.url}.", param="model")
        if self._model is None:
            await self.start()
        assert self._model is not None
        try:
            asked, count = self._read(self._model, request.body)
            if self._collector is None or self._collector.done():  # nobody would read it
                raise EngineDead("the engine's loop has ended")
            return await self._enqueue(asked, count, request.priority).answer
        except Unacceptable as wrong:
            return wrong.answer

    async def stream(self, request: Request, emit: Emit) -> Answer:  # noqa: ARG002
        """Answers come whole: `emit` gets nothing."""
        return refusal(400, f"This model does not serve {request.url} as a stream.", param="stream")

    def _enqueue(self, asked: Any, count: int, priority: int) -> Job:
        job = Job(asked, priority, asyncio.get_running_loop().create_future(), [None] * count, count)
        self._inbox.append(job)
        self._arrived.set()
        return job

    def _loaded(self) -> M:
        return self._load(self._source if isinstance(self._source, str) else self._source())

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _collect(self, model: M) -> None:
        """Forward passes, one after the other, as long as anything waits."""
        pool = Pool()
        jobs: list[Job] = []
        batch: list[Entry] = []
        gone: EngineError = EngineBusy("The engine is closing.", retry_after=1.0)
        try:
            while True:
                if not pool:
                    await self._arrived.wait()
                self._arrived.clear()
                jobs, self._inbox = self._inbox, []
                await self._admit(model, jobs, pool)
                batch = pool.pick(model.batch_tokens)
                await self._run(model, batch)
                await self._trim(batch)
        except Exception as error:
            log.exception("engine.loop_failed", extra={"model": self._names[0]})
            gone = EngineDead(f"the engine's loop has ended: {error}")
        finally:
            left, self._inbox = [*jobs, *self._inbox, *pool.jobs(), *(entry[2] for entry in batch)], []
            for job in left:
                _fail(job, gone)

    async def _admit(self, model: M, jobs: list[Job], pool: Pool) -> None:
        if not jobs:
            return
        try:
            lists = await self._in_thread(self._tokenise, model, [job.asked for job in jobs])
        except Exception as error:  # noqa: BLE001  a tokenizer raises anything
            for job in jobs:
                _fail(job, EngineFault(f"The tokenizer failed: {error}"))
            return
        for job, inputs in zip(jobs, lists, strict=True):
            self._admit_one(model, job, inputs, pool)

    def _admit_one(self, model: M, job: Job, inputs: list[Any], pool: Pool) -> None:
        try:
            inputs = self._fit(model, job, inputs)
        except Unacceptable as wrong:
            _fail(job, wrong)
            return
        job.lengths = tuple(map(len, inputs))
        for which, one in enumerate(inputs):
            pool.add(job, which, one)

    async def _run(self, model: M, batch: list[Entry]) -> None:
        if not batch:
            return
        try:
            found = await self._in_thread(self._forward, model, [entry[4] for entry in batch])
        except Exception as error:
            log.exception("engine.batch_failed", extra={"model": self._names[0], "inputs": len(batch)})
            for entry in batch:
                _fail(entry[2], EngineFault(f"The forward pass failed: {error}"))
            return
        for (_, _, job, which, _), one in zip(batch, found, strict=True):
            job.found[which] = one
            job.missing -= 1
            if job.missing == 0 and not job.answer.done():
                job.answer.set_result(self._write(job))

    async def _trim(self, batch: list[Entry]) -> None:
        """While its answers are on their way."""
        self._untrimmed += sum(map(_length, batch))
        began = time.monotonic()
        if self._untrimmed < TRIMMED_TOKENS or began < self._untrimmed_until:
            return
        await self._in_thread(memory.trim)
        now = time.monotonic()
        self._untrimmed, self._untrimmed_until = 0, now + (now - began) / TRIMMING


def _fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
