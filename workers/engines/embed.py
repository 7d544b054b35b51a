"""Embeddings in this process, on sentence-transformers.

    requests ──▶ inbox ──tokenise──▶ pool, sorted by length ──micro-batch──▶ forward pass ──▶ answers
                          └──────────── one worker thread ──────────────────────┘

A micro-batch is the input that has waited longest and those of nearly its length, whichever requests they belong
to: little padding, and nothing waits for ever. A cancelled request leaves the pool within one micro-batch.
Importing this module does not import torch; `start` does.
"""

import asyncio
import bisect
import heapq
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from workers.engines.embed_model import SentenceModel
from workers.engines.embed_request import Asked, Texts, Tokens, Unacceptable, check_lengths, read, write
from workers.engines.embed_runtime import Chooser, Place
from workers.engines.port import Answer, Emit, EngineBusy, EngineFault, Request, refusal, unknown_model

PADDING_RATIO: Final = 1.25  # neighbours in a micro-batch differ by at most this factor
PADDING_TOKENS: Final = 8  # and this much: a forward pass of its own would cost more

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way."""

    asked: Asked
    priority: int
    answer: asyncio.Future[Answer]
    vectors: list[Any]
    missing: int
    lengths: tuple[int, ...] = ()


Entry = tuple[int, int, Job, int, list[int]]  # length, order, whose, which of its inputs, token ids


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

    def add(self, job: Job, which: int, ids: list[int]) -> None:
        entry = (len(ids), next(self._order), job, which, ids)
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
        last, most = place + 1, max(1, budget // length)
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


class EmbedEngine:
    """`source` is a folder or a hub's name; a callable finds it out at the start, in the worker thread.

    `place` is where the runtime's choice is kept; without one, the arguments alone decide.
    """

    def __init__(
        self,
        source: str | Callable[[], str],
        names: Sequence[str],
        *,
        revision: str | None = None,
        args: Mapping[str, Any] | None = None,
        place: Place | None = None,
    ) -> None:
        self._source, self._revision, self._args = source, revision, dict(args or {})
        self._names = tuple(names)
        self._chooser = Chooser(self._names[0], place)
        self._starting = asyncio.Lock()
        self._model: SentenceModel | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._collector: asyncio.Task[None] | None = None
        self._inbox: list[Job] = []
        self._arrived = asyncio.Event()

    @property
    def models(self) -> tuple[str, ...]:
        return self._names

    async def start(self) -> None:
        async with self._starting:
            if self._collector is not None:
                return
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
            self._model = await self._in_thread(self._load)
            self._collector = asyncio.create_task(self._collect(self._model))

    async def close(self) -> None:
        async with self._starting:
            if self._collector is not None:
                self._collector.cancel()
                await asyncio.gather(self._collector, return_exceptions=True)
            self._chooser.close()
            if self._thread is not None:
                await asyncio.to_thread(self._thread.shutdown)
            self._model = self._thread = self._collector = None

    async def answer(self, request: Request) -> Answer:
        if request.body.get("model") not in self._names:
            return unknown_model(str(request.body.get("model")))
        if request.url != "/v1/embeddings":
            return refusal(400, f"This model does not serve {request.url}.", param="model")
        if self._model is None:
            await self.start()
        assert self._model is not None
        try:
            asked = read(request.body, self._model.dimensions, self._model.vocabulary)
            job = self._enqueue(asked, request.priority)
            return await job.answer
        except Unacceptable as wrong:
            return wrong.answer

    async def stream(self, request: Request, emit: Emit) -> Answer:  # noqa: ARG002
        """Vectors come whole: `emit` gets nothing."""
        return refusal(400, f"This model does not serve {request.url} as a stream.", param="stream")

    def _enqueue(self, asked: Asked, priority: int) -> Job:
        count = len(asked.inputs)
        job = Job(asked, priority, asyncio.get_running_loop().create_future(), [None] * count, count)
        self._inbox.append(job)
        self._arrived.set()
        return job

    def _load(self) -> SentenceModel:
        source = self._source if isinstance(self._source, str) else self._source()
        return self._chooser.load(source, self._revision, self._args)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _collect(self, model: SentenceModel) -> None:
        """Forward passes, one after the other, as long as anything waits."""
        pool = Pool()
        jobs: list[Job] = []
        batch: list[Entry] = []
        try:
            while True:
                if not pool:
                    await self._arrived.wait()
                self._arrived.clear()
                jobs, self._inbox = self._inbox, []
                await self._admit(model, jobs, pool)
                batch = pool.pick(model.batch_tokens)
                await self._run(model, batch)
        finally:
            gone = EngineBusy("The embedding engine is closing.", retry_after=1.0)
            for job in [*jobs, *self._inbox, *pool.jobs(), *(entry[2] for entry in batch)]:
                _fail(job, gone)

    async def _admit(self, model: SentenceModel, jobs: list[Job], pool: Pool) -> None:
        if not jobs:
            return
        try:
            lists = await self._in_thread(_tokenise, model, [job.asked.inputs for job in jobs])
        except Exception as error:  # noqa: BLE001  a tokenizer raises anything
            for job in jobs:
                _fail(job, EngineFault(f"The tokenizer failed: {error}"))
            return
        for job, ids in zip(jobs, lists, strict=True):
            self._admit_one(model, job, ids, pool)

    def _admit_one(self, model: SentenceModel, job: Job, ids: Tokens, pool: Pool) -> None:
        lengths = [len(one) for one in ids]
        try:
            check_lengths(lengths, model.longest)
        except Unacceptable as wrong:
            _fail(job, wrong)
            return
        job.lengths = tuple(lengths)
        for which, one in enumerate(ids):
            pool.add(job, which, one)

    async def _run(self, model: SentenceModel, batch: list[Entry]) -> None:
        if not batch:
            return
        try:
            vectors = await self._in_thread(model.embed, [entry[4] for entry in batch])
        except Exception as error:
            log.exception("embed.batch_failed", extra={"inputs": len(batch)})
            for entry in batch:
                _fail(entry[2], EngineFault(f"The forward pass failed: {error}"))
            return
        for (_, _, job, which, _), vector in zip(batch, vectors, strict=True):
            job.vectors[which] = vector
            job.missing -= 1
            if job.missing == 0 and not job.answer.done():
                job.answer.set_result(write(job.asked, self._names[0], job.vectors, job.lengths))


def _tokenise(model: SentenceModel, many: list[Texts | Tokens]) -> list[Tokens]:
    """All texts of all requests in one call: the tokenizer runs them in parallel."""
    texts = [text for inputs in many for text in inputs if isinstance(text, str)]
    ids = iter(model.tokens_of(texts) if texts else [])
    return [[next(ids) if isinstance(one, str) else model.framed(one) for one in inputs] for inputs in many]


def _fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
