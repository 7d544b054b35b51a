"""Compute many requests together in the forward passes of an encoder: the base of embedding and re-ranking engines.

    requests ──▶ backlog ──tokenise a part──▶ pool, sorted by length ──micro-batch──▶ forward pass ──▶ answers
                          └──────────────── one worker thread, in turn ─────────────┘

A micro-batch is the input whose turn it is, with inputs of nearly its length from any request: little padding, and no
input waits for ever. `encoder_pool` decides whose turn it is. Between two forward passes a bounded amount of text is
tokenised, however much waits. A cancelled request leaves the pool within one micro-batch.

An unexpected error ends the loop: all requests in flight get EngineDead, and so do later ones until the next `start`.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, Protocol, TypeVar

from jobs.fleet.models_file import EngineKind
from jobs.platform import memory
from workers.engines.documented import refuse_unknown
from workers.engines.encoders.encoder_pool import Backlog, EncoderTask, Entry, InputPool, TaskSlice, flow_of, length_of
from workers.engines.foreign_errors import ForeignCall
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

#: Characters that are tokenised between two forward passes: a tenth of a second's work, and more than a pass consumes.
TOKENISED_CHARACTERS: Final = 1 << 18
#: Limit of the tokens of one flow that wait, in forward passes, beside those of the request that reached it.
POOLED_PASSES: Final = 16
#: Limit of a text's characters for each token that the model takes. The rest is cut off, or the text refused, unread.
MAX_TOKEN_LENGTH: Final = 32

#: Memory freed by forward passes is returned to the machine: MiniLM needs 100 MB in one, and held 430 MB after a few.
#: This is done after so many tokens, which single requests seldom have, and takes at most this share of the time.
TRIMMED_TOKENS: Final = 4096
TRIMMING: Final = 0.02

#: Kernels that oneDNN caches for another forward pass of their shape, about a megabyte each; its default is 1,024.
KERNELS: Final = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"

log = logging.getLogger(__name__)

T = TypeVar("T")


class Unacceptable(Exception):
    """The request breaks a rule; `answer` is the refusal."""

    def __init__(self, message: str, *, param: str = "input", code: str | None = None) -> None:
        super().__init__(message)
        self.answer = refusal(400, message, param=param, code=code)


def padded_width(tokens: int, longest: int) -> int:
    """Return the padded width in tokens of a forward pass over inputs of so many tokens: one of a few widths.

    On a CPU torch makes kernels for each width and never drops them: with arbitrary widths memory grew with the input.
    """
    step = 4 if tokens <= 8 else 8 if tokens <= 32 else 16
    return max(tokens, min(-(-tokens // step) * step, longest))


class Encoder(Protocol):
    """A loaded model. `batch_tokens` limits the padded tokens of one forward pass."""

    batch_tokens: int


M = TypeVar("M", bound=Encoder)


class BatchingEngine(ABC, Generic[M]):
    """One model behind one worker thread. The abstract methods implement a kind of request."""

    url: str  # the endpoint that it serves
    kind: EngineKind

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
        self._untrimmed, self._untrimmed_until = 0, 0.0  # tokens; monotonic time
        self._thread: ThreadPoolExecutor | None = None
        self._collector: asyncio.Task[None] | None = None
        self._backlog = Backlog()
        self._arrived = asyncio.Event()
        self.phase = ""

    @abstractmethod
    def _load(self, source: str) -> M:
        """Run in the worker thread."""

    @abstractmethod
    def _read(self, model: M, body: Mapping[str, Any]) -> tuple[Any, Sequence[int]]:
        """Check a body; return the request, and the characters of each of its inputs. Raises Unacceptable."""

    @abstractmethod
    def _tokenise(self, model: M, slices: Sequence[TaskSlice]) -> list[list[Any]]:
        """Return the tokens of each input of each slice. Run in the worker thread."""

    def _fit(self, model: M, job: EncoderTask, inputs: list[Any]) -> list[Any]:  # noqa: ARG002 (for those that have limits)
        """Return the tokens of the next inputs of a request, cut off where the request asks for it.

        Raises Unacceptable where the tokens are too many, alone or with those of the inputs before.
        """
        return inputs

    @abstractmethod
    def _forward(self, model: M, batch: list[Any]) -> Sequence[Any]:
        """Run in the worker thread."""

    @abstractmethod
    def _write(self, job: EncoderTask) -> Answer: ...

    @property
    def models(self) -> tuple[str, ...]:
        return self._names

    async def start(self) -> None:
        async with self._starting:
            if self._collector is not None and not self._collector.done():
                return
            if self._model is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
                self._model = await self._run_work(self._load_model)
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
        """Close what does not belong to the worker thread."""

    async def answer(self, request: Request) -> Answer:
        if request.body.get("model") not in self._names:
            return unknown_model(str(request.body.get("model")))
        if request.url != self.url:
            return refusal(400, f"This model does not serve {request.url}.", param="model")
        if refused := refuse_unknown(self.kind, request):
            return refused
        if self._model is None:
            await self.start()
        assert self._model is not None
        try:
            body, sizes = self._read(self._model, request.body)
            if self._collector is None or self._collector.done():  # no loop would read it
                raise EngineDead("the engine's loop has ended")
            return await self._enqueue(request, body, sizes, self._model.batch_tokens)
        except Unacceptable as wrong:
            return wrong.answer

    async def stream(self, request: Request, emit: Emit) -> Answer:  # noqa: ARG002
        """Answer without a stream: `emit` is not called."""
        return refusal(400, f"This model does not serve {request.url} as a stream.", param="stream")

    def _enqueue(self, request: Request, body: Any, sizes: Sequence[int], batch_tokens: int) -> asyncio.Future[Answer]:
        flow = flow_of(request.tenant, request.priority, sum(sizes), batch_tokens)
        job = EncoderTask(body, sizes, flow, request.priority, asyncio.get_running_loop().create_future())
        self._backlog.add(job)
        self._arrived.set()
        return job.answer

    def _load_model(self) -> M:
        self.phase = "preparing the model's files"
        source = self._source if isinstance(self._source, str) else self._source()
        self.phase = "reading the weights"
        return self._load(source)

    async def _attempt(self, work: Callable[..., T], *args: Any) -> T | Exception:
        """Call `work` in the worker thread; return its result or its exception."""
        with ForeignCall() as call:
            return await self._run_work(work, *args)
        assert call.error is not None
        return call.error

    async def _run_work(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _collect(self, model: M) -> None:
        """Tokenise and compute in turn while inputs wait."""
        pool = InputPool()
        slices: list[TaskSlice] = []
        batch: list[Entry] = []
        failure: EngineError = EngineBusy("The engine is closing.", retry_after=1.0)
        try:
            with ForeignCall() as loop:
                while True:
                    if not pool and not self._backlog:
                        self._arrived.clear()
                        await self._arrived.wait()
                    slices = self._backlog.slices(pool.pooled, POOLED_PASSES * model.batch_tokens, TOKENISED_CHARACTERS)
                    await self._admit(model, slices, pool)
                    batch = pool.pick(model.batch_tokens)
                    await self._run(model, batch)
                    await self._trim(batch)
            log.error("engine.loop_failed", exc_info=loop.error, extra={"model": self._names[0]})
            failure = EngineDead(f"the engine's loop has ended: {loop.error}")
        finally:
            left = [
                *self._backlog.jobs(),
                *(part.job for part in slices),
                *pool.jobs(),
                *(entry[2] for entry in batch),
            ]
            self._backlog = Backlog()
            for job in left:
                job.fail(failure)

    async def _admit(self, model: M, slices: Sequence[TaskSlice], pool: InputPool) -> None:
        if not slices:
            return
        lists = await self._attempt(self._tokenise, model, slices)
        if isinstance(lists, Exception):
            if len(slices) == 1:
                slices[0].job.fail(EngineFault(f"The tokenizer failed: {lists}"))
                return
            for part in slices:  # so that only the faulty slice fails
                await self._admit(model, [part], pool)
            return
        for part, inputs in zip(slices, lists, strict=True):
            self._admit_one(model, part.job, inputs, pool)

    def _admit_one(self, model: M, job: EncoderTask, inputs: list[Any], pool: InputPool) -> None:
        """Put all inputs of a request into the pool together, so that a refused request is not computed in part."""
        if job.answer.done():
            return
        try:
            inputs = self._fit(model, job, inputs)
        except Unacceptable as wrong:
            job.fail(wrong)
            return
        job.inputs += inputs
        job.lengths += map(len, inputs)
        if len(job.inputs) == len(job.sizes):
            for which, item in enumerate(job.inputs):
                pool.add(job, which, item)
            job.inputs = []

    async def _run(self, model: M, batch: list[Entry]) -> None:
        if not batch:
            return
        results = await self._attempt(self._forward, model, [entry[4] for entry in batch])
        if isinstance(results, Exception):
            await self._run_apart(model, batch, results)
            return
        for (_, _, job, which, _), result in zip(batch, results, strict=True):
            job.results[which] = result
            job.missing -= 1
            if job.missing == 0 and not job.answer.done():
                job.answer.set_result(self._write(job))

    async def _run_apart(self, model: M, batch: list[Entry], error: Exception) -> None:
        """Compute the inputs of each request alone, after a forward pass over all has failed with `error`."""
        of_jobs: dict[EncoderTask, list[Entry]] = {}
        for entry in batch:
            of_jobs.setdefault(entry[2], []).append(entry)
        if len(of_jobs) > 1:
            for entries in of_jobs.values():
                await self._run(model, entries)
            return
        log.error("engine.batch_failed", exc_info=error, extra={"model": self._names[0], "inputs": len(batch)})
        for job in of_jobs:
            job.fail(EngineFault(f"The forward pass failed: {error}"))

    async def _trim(self, batch: list[Entry]) -> None:
        """Return freed memory to the machine, while the answers are on their way."""
        self._untrimmed += sum(map(length_of, batch))
        began = time.monotonic()
        if self._untrimmed < TRIMMED_TOKENS or began < self._untrimmed_until:
            return
        await self._run_work(memory.trim)
        now = time.monotonic()
        self._untrimmed, self._untrimmed_until = 0, now + (now - began) / TRIMMING
