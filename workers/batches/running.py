"""Running a shard: claim it, answer the lines that no segment covers, commit segments, close it or give it back.

    claim ─▶ items ─▶ engine loop ──answers──▶ buffer ──every second, and at the end──▶ file, fsync ─▶ one transaction
                          ▲                                                                  │
      stop (cancel, expiry, shutdown): abort, commit what is there, give back                ├─ Fenced: dropped
      GaveUp (engine away): commit, give back with a delay                                   └─ last: shard done,
                                                  and a job of one shard is finished at once, if it has one segment
                                                  in that same transaction

The Celery thread owns SQL and files; the engine's loop owns the requests. After repeated stalls the shard is run in
careful mode, one line at a time, so that a line that kills the worker names itself.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from functools import partial

from sqlalchemy.orm import Session

from jobs.errors import DatabaseBusy, Fenced, NotFound, StorageAway, StorageFull
from jobs.inference import responses
from jobs.ledger import ledger, outbox, shards, shares
from jobs.ledger.ledger import JobClaim
from jobs.ledger.outbox import LONGEST_DELAY
from jobs.ledger.payloads import INGESTION, Response
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.logs import Seldom
from jobs.queues import Task
from workers.batches.admission import Admission, Entry
from workers.batches.finishing import Results, assemble, finish
from workers.batches.items import read_items
from workers.engines.port import Answer, EngineFault, Request
from workers.inference.background_responses import Telling
from workers.retrieval.ingestion.index import Indexing
from workers.runtime import claims, output_lines
from workers.runtime.answering import Answering
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.heartbeat import Hold
from workers.runtime.output_lines import Item, Record

log = logging.getLogger(__name__)
_storage_failed = Seldom(log, "shard_storage_failed")  # hundreds of shards try again every ten seconds
STORAGE_SECONDS = 10.0  # before results that could not be stored are tried again
_AGAIN_SECONDS = 1.0
_CAREFUL_TRIES = 2  # of one line, when its worker died each time
_CRASHED = ("worker_crashed", "The worker died each time it ran this request.")
_BROKE = "engine_error"


def run_in_turn(context: Context, host: EngineHost, admission: Admission, job_id: str, n: int) -> None:
    """Handle one `run` doorbell, as soon as this worker has room for it; one that may be long goes to another."""
    share = _share(context, job_id, n)
    if share is None:  # a stale doorbell: to find that out takes no room
        run(context, host, job_id, n)
        return
    if not host.started:
        _send_away(context, job_id, n)
        return
    with admission.enter((job_id, n), share) as entry:
        if entry is Entry.IN:
            run(context, host, job_id, n)
        elif entry is Entry.AWAY:
            _send_away(context, job_id, n)


def _share(context: Context, job_id: str, n: int) -> float | None:
    try:
        with context.db.read() as session:
            return shares.of_shard(session, job_id, n, context.config)
    except DatabaseBusy:  # the claim has the patience for that
        return 1.0


def _send_away(context: Context, job_id: str, n: int) -> None:
    """Its doorbell is rung again, after a moment in which whoever has room takes others; at once where we end."""
    delay = 0.0 if context.stop.is_set() else _AGAIN_SECONDS
    context.db.retrying(lambda session: outbox.unring(session, Task.RUN, job_id, n, delay=delay))


def run(context: Context, host: EngineHost, job_id: str, n: int) -> None:
    """Run one shard. Returns quietly when there is nothing to run or the claim was lost.

    A doorbell that was rung for a worker before us may come while our engine loads. Claimed then, a shard would be
    blamed for whatever happens to us until the first answer.
    """
    if not host.await_start(context.stop):
        return
    claim = claims.shard(context, job_id, n)
    if claim is None:
        return
    with ExitStack() as holding:
        hold = holding.enter_context(context.keeper.holding(job_id, claim.epoch, n))
        run = (Indexing if claim.job.kind == INGESTION else _Run)(context, host, claim, hold)
        try:
            run.all()
        except Fenced:
            log.info("shard_fenced", extra={"job_id": job_id, "shard": n, "epoch": claim.epoch})
        except GaveUp as away:
            times = claim.epoch // 2 if away.grows else 0  # it was given back before
            run.give_back(min(away.delay * 2 ** min(times, 5), max(away.delay, LONGEST_DELAY)), "model")
        except (StorageFull, StorageAway, NotFound) as error:
            _storage_failed.warn(job_id=job_id, shard=n, error=str(error.__cause__ or error))
            run.give_back(STORAGE_SECONDS, "disk")
        finally:  # after an error too: with the last segment the job may have become ours
            holding.close()
            if run.closed and claim.lines == claim.job.total and not run.ended:
                finish(context, job_id, run.finishing)  # it is small: to ring for somebody else costs more


class _Run:
    """One claim on one shard."""

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, hold: Hold) -> None:
        self.context = context
        self.host = host
        self.claim = claim
        self.hold = hold
        self.tries = context.config.item_tries
        self.buffer: deque[Record] = deque()
        self.items: list[Item] = []
        self.left = claim.lines - claim.covered.bit_count()
        self.seq = 0
        self.closed = False
        self.finishing: JobClaim | None = None
        self.ended = False  # its job has

    def all(self) -> None:
        claim, limit = self.claim, self.context.config.stalls_before_careful
        if self.context.low_on_disk():
            raise StorageFull
        self.items, broken = read_items(self.context, claim)
        self.buffer.extend(broken)
        if claim.stalls >= limit or claim.trying_line is not None:
            self._carefully()
        else:
            self._answer(self.items)
        self._close()

    def give_back(self, delay: float, waiting_for: str | None) -> None:
        """End the claim without closing the shard; how often each line broke is kept."""
        self.claim.faults.update({item.line: item.trials.kept() for item in self.items if any(item.trials.kept())})
        self.context.db.retrying(
            lambda session: shards.give_back(session, self.claim, delay=delay, waiting_for=waiting_for)
        )

    def _carefully(self) -> None:
        """One line at a time, named before it is tried; a line that has killed its workers is not tried again."""
        log.warning("shard_careful", extra={"job_id": self.claim.job.id, "shard": self.claim.n})
        for item in self.items:
            claim = self.claim
            if item.line == claim.trying_line and claim.trying_times >= _CAREFUL_TRIES:
                self._fail(item, *_CRASHED)
            else:
                self._write(partial(shards.trying, claim=claim, line=item.line))
                self._answer([item])
            self._commit()
            if self.hold.ended:
                return

    def _answer(self, items: list[Item]) -> None:
        """Answer on the loop, commit on this thread while it goes on."""
        self.hold.changed.clear()
        if self.hold.ended:
            return
        answering = Answering(self.host, self.tries, self._emit, self._telling())
        future = self.host.call(answering.run([item for item in items if not item.trials.spent(self.tries)]))
        future.add_done_callback(lambda _: self.hold.changed.set())
        try:
            self._collect(future)
            broken = future.result()
        except CancelledError:
            return
        except GaveUp:
            self._commit()  # the other lines' answers are there
            raise
        finally:
            future.cancel()  # whatever keeps us from storing answers: nothing more is asked
        for item in broken + [item for item in items if item.trials.spent(self.tries) and item.fault is None]:
            self._give_up(item)

    def _telling(self) -> Callable[[Request], Awaitable[Answer]] | None:
        """How a response is asked for whose events somebody wants to see."""
        job = self.claim.job
        if job.kind != responses.KIND or not Response.model_validate(job.payload).stream:
            return None
        return Telling(self.host, self.context.config, job.id, self.claim.epoch).ask

    def _collect(self, future: Future[list[Item]]) -> None:
        while not future.done():
            self.hold.changed.wait(self.context.config.segment_seconds)
            if self.hold.lost.is_set():
                raise Fenced
            if self.hold.stop.is_set():
                future.cancel()
                self.host.call(_nothing()).result()  # the loop has seen the cancellation
                return
            if not future.done() and self.buffer:
                self._commit()

    def _close(self) -> None:
        """The last segment: with every line covered the shard is done, otherwise it goes back."""
        if self.hold.lost.is_set():
            raise Fenced
        self._commit()
        if self.left:
            self.give_back(0.0, None)

    def _commit(self) -> None:
        """One segment: its file, durable, then its row with the shard's sums."""
        batch = [self.buffer.popleft() for _ in range(len(self.buffer))]
        if self.closed or (not batch and self.left):
            return
        self.left -= len(batch)
        last = not self.left
        tally = _tally(batch)
        data = b"".join(record.data for record in batch)
        path = shards.segment_path(self.claim.job.id, self.claim.n, self.claim.epoch, self.seq)
        if batch:
            self.context.storage.put(path, data)
        results = self._assemble(batch, tally)
        try:
            self._write(lambda session: self._record(session, path, len(data), tally, last, results))
        except Fenced:
            self._discard(results)
            raise
        self._discard(results)
        if last and not self.context.db.sqlite and self.finishing is None:
            # two last shards may each have seen the other open: look again, now that both are committed
            self._write(lambda session: ledger.settle(session, self.claim.job.id, actor=self._actor))
        self.seq += 1
        self.closed = last

    def _assemble(self, batch: list[Record], tally: Tally) -> Results | None:
        """What the job results in, if this is all of it: then it ends with its only segment."""
        job = self.claim.job
        if job.kind == responses.KIND or len(batch) != job.total:
            return None
        return assemble(self.context, job, batch, tally)

    def _discard(self, results: Results | None) -> None:
        """What the job did not end with. After another error it may have: whatever nobody points to is found later."""
        if results and not self.ended:
            results.discard(self.context)

    def _record(
        self, session: Session, path: str, length: int, tally: Tally, last: bool, results: Results | None
    ) -> None:
        self.ended = False
        if tally.covered:
            job = shards.commit(session, self.claim, self.seq, path, length, tally, last=last)
        else:
            job = shards.finish_empty(session, self.claim)
        if last and job and self.claim.lines == job.total:
            self._go_on(session, job, results)
        elif last:
            ledger.settle(session, self.claim.job.id, actor=self._actor, locked=job)

    def _go_on(self, session: Session, job: Job, results: Results | None) -> None:
        """The right to finish the job, with its results its end. Run twice it is the first one's, if that counts."""
        before, worker_id = self.finishing, self.context.worker_id
        if before and (job.epoch, job.worker_id) == (before.epoch, worker_id):
            self.finishing = JobClaim(job, before.epoch, worker_id)
        else:
            self.finishing = ledger.go_on(session, job, worker_id)
        if results and self.finishing:
            ledger.close(session, self.finishing, results.values, results.files, results.outcomes, locked=job)
        self.ended = job.state in TERMINAL

    @property
    def _actor(self) -> str:
        return f"worker:{self.context.worker_id}"

    def _emit(self, item: Item, answer: Answer) -> None:
        self.buffer.append(output_lines.answered(item, answer))
        self.buffer.extend(output_lines.answered(follower, answer, item) for follower in item.followers)

    def _give_up(self, item: Item) -> None:
        """A line that broke every time: with the engine's own error answer where it gave one."""
        fault = item.fault
        answer = fault.answer if isinstance(fault, EngineFault) else None
        if answer is not None:
            self._emit(item, answer)
        else:
            self._fail(item, _BROKE, f"The engine gave no answer to this request: {fault or 'it broke every time'}")

    def _fail(self, item: Item, code: str, message: str) -> None:
        for one in (item, *item.followers):
            self.buffer.append(output_lines.failed(one.line, one.id, one.custom_id, code, message))

    def _write(self, work: Callable[[Session], None]) -> None:
        self.context.db.retrying(work)


def _tally(batch: list[Record]) -> Tally:
    tally = Tally()
    for record in batch:
        bit = 1 << record.line
        tally.covered |= bit
        tally.good |= bit if record.good else 0
        tally.input_tokens += record.usage.input_tokens
        tally.cached_tokens += record.usage.cached_tokens
        tally.output_tokens += record.usage.output_tokens
        tally.reasoning_tokens += record.usage.reasoning_tokens
        for name in record.outcomes:
            tally.outcomes[name] = tally.outcomes.get(name, 0) + 1
        if record.seconds is not None:
            tally.took.append(record.seconds)
    return tally


async def _nothing() -> None:
    """Runs after whatever the loop had to do before it."""
