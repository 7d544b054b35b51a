"""The life of a claim: claim, call the handler of the job's kind, record how it ended.

    message ─▶ claim ─▶ handler ─┬─ returns                                    the handler has written what it did
                                 ├─ ClaimLost ─▶ nothing                        a newer claim exists
                                 ├─ Abandoned, GaveUp, storage or database unavailable ─▶ released, retried later
                                 └─ another error ─▶ job: retried with growing delays, failed after the last try
                                                     shard: its lease ends; after several leases it runs line by line

An error in planning or finishing may be temporary: a mount that is unavailable, a process that is being replaced. So
the job is retried. The number of tries is limited, because a permanent error would repeat until the job's deadline.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final

from jobs.errors import ClaimLost, DatabaseBusy, NotFound, StorageFull, StorageUnavailable, TookTooLong
from jobs.ledger import ledger, outbox, slot_weights
from jobs.ledger.kinds import UnknownKind
from jobs.ledger.ledger import JobClaim
from jobs.ledger.outbox import MAX_DELAY
from jobs.ledger.shards import ShardClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.logs import Seldom, about
from jobs.queues import Queue, Task
from workers import kinds
from workers.batches.planning import plan_small
from workers.batches.slot_scheduler import Decision, SlotScheduler
from workers.runtime.attempts import Abandoned, ShardRun, claim_job, claim_shard, stop_all
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost, GaveUp

log = logging.getLogger(__name__)
_storage_failed = Seldom(log, "work_waits_for_storage")  # hundreds of shards retry every ten seconds
database_away = Seldom(log, "work_waits_for_database")

#: Tries to plan or to finish a job before it fails.
MAX_TRIES: Final = 5
#: The step that failed, by task, for the error of a job.
_FAILURES: Final = {Task.PLAN: "The input cannot be planned", Task.FINISH: "The results cannot be assembled"}


# -- a job


def plan_all(context: Context, job_ids: Sequence[str]) -> None:
    """Handle one `plan` message: plan the jobs with small inputs together, and each other job alone."""
    for job_id in plan_small(context, job_ids):
        plan(context, job_id)


def plan(context: Context, job_id: str) -> None:
    """Plan one job. Return quietly when there is nothing to plan or the claim was lost."""
    if (claim := claim_job(context, job_id, Task.PLAN)) is None:
        return
    with (
        _about(claim.job),
        context.heartbeat.watching(job_id, claim.epoch) as handle,
        _record_end(context, _JobAttempt(context, claim, Task.PLAN)),
    ):
        kinds.handler_of(claim.job).plan(context, claim, handle)


def finish(context: Context, job_id: str, claim: JobClaim | None = None) -> None:
    """Finish one job. Return quietly when there is nothing to finish or the claim was lost.

    A `claim` is given by the worker that ran the job's only shard: its last transaction made the claim, without a
    message.
    """
    claim = claim or claim_job(context, job_id, Task.FINISH)
    if claim is None:
        return
    with (
        _about(claim.job),
        context.heartbeat.watching(job_id, claim.epoch) as handle,
        _record_end(context, _JobAttempt(context, claim, Task.FINISH)),
    ):
        kinds.handler_of(claim.job).finish(context, claim, handle)
    handler = kinds.HANDLERS.get(claim.job.kind)
    if handler and handler.tend:
        handler.tend(context, claim.job)


def _about(job: Job) -> AbstractContextManager[None]:
    """Name a job, and the request that it was created by, in the logs and in the requests to HTTP engines."""
    return about(job_id=job.id, request_id=job.request_id)


# -- a shard


def run_with_slot(context: Context, host: EngineHost, slot_scheduler: SlotScheduler, job_id: str, n: int) -> None:
    """Handle one `run` message when this worker has a free slot. Publish it again where that may take long."""
    slot_weight = _slot_weight(context, job_id, n)
    if slot_weight is None:  # an outdated message: detecting that takes no slot
        run(context, host, job_id, n)
        return
    if not host.started:
        _send_to_another(context, job_id, n)
        return
    with slot_scheduler.enter((job_id, n), slot_weight) as decision:
        if decision is Decision.ADMITTED:
            run(context, host, job_id, n)
        elif decision is Decision.REFUSED:
            _send_to_another(context, job_id, n)


def _slot_weight(context: Context, job_id: str, n: int) -> float | None:
    try:
        with context.db.read() as session:
            return slot_weights.weight_of_shard(session, job_id, n, context.config)
    except DatabaseBusy:  # the claim will retry
        return 1.0


def _send_to_another(context: Context, job_id: str, n: int) -> None:
    """Publish the message again: at once where this worker stops, else with a delay, so that others come first."""
    delay = 0.0 if context.stop.is_set() else context.timings.slot_retry
    context.db.retrying(lambda session: outbox.unpublish(session, Task.RUN, job_id, n, delay=delay))


def run(context: Context, host: EngineHost, job_id: str, n: int) -> None:
    """Run one shard on the engine. Return quietly when there is nothing to run or the claim was lost.

    Wait until the engine has started before the claim: a shard that is claimed while the engine loads would be blamed
    for a failure of the start.
    """
    if host.await_start(context.stop):
        run_shard(context, Queue.GENERATE, (host,), job_id, n)


def run_shard(context: Context, queue: Queue, tools: Sequence[object], job_id: str, n: int) -> None:
    """Run one shard as a process of `queue` does, with its `tools`: see `kinds.Handler.runs`.

    Return quietly when there is nothing to run or the claim was lost. Finish the job at once if this was its only
    shard, which is faster than another message.
    """
    stage = queue if queue is Queue.INGEST else None  # a shard names its queue in the first of two stages alone
    claim = claim_shard(context, job_id, n, queue=stage)
    if claim is None:
        return
    job = claim.job
    attempt = _ShardAttempt(claim)
    with _about(job), ExitStack() as watching:
        handle = watching.enter_context(context.heartbeat.watching(job.id, claim.epoch, claim.n))
        try:
            with _record_end(context, attempt):
                make = kinds.handler_of(job).runs.get(queue)
                if make is None:
                    raise UnknownKind(f"Jobs of kind '{job.kind}' have no part that a process of '{queue}' runs.")
                attempt.run = make(context, *tools, claim, handle)
                attempt.run.run_lines()
        finally:  # also after an error: the commit of the last segment may have made the claim to finish
            watching.close()
            run = attempt.run
            if run is not None and run.closed and claim.lines == job.total and not run.ended:
                finish(context, job.id, run.finishing)


# -- attempts and how they end


class _JobAttempt:
    """An attempt to plan or finish a job. Errors are counted; after the last try the job fails."""

    storage: tuple[type[Exception], ...] = (StorageFull, StorageUnavailable)

    def __init__(self, context: Context, claim: JobClaim, task: Task) -> None:
        self._context = context
        self._claim = claim
        self._task = task
        self.epoch = claim.epoch
        self.log_fields = {"task": task.value, "job_id": claim.job.id}

    def release(self, delay: float, waiting_for: str | None) -> None:
        job_id = self._claim.job.id
        self._context.db.retrying(
            lambda session: ledger.release(session, job_id, self.epoch, delay=delay, waiting_for=waiting_for)
        )

    def fail(self, error: Exception) -> None:
        """Release the claim with a delay. After the last try, fail the job, and name the step and the reason."""
        log.error("attempt_failed", exc_info=error, extra=self.log_fields)
        context, claim = self._context, self._claim
        code, reason = self._reason(error)
        report = {"code": code, "message": f"{_FAILURES[self._task]}: {reason}", "line": None, "param": None}
        delay = context.config.redelivery_seconds * (1 + claim.job.failed_attempts)
        with suppress(ClaimLost):
            if claim.job.failed_attempts + 1 >= MAX_TRIES:
                stop_all(context, claim, JobState.FAILED, [report])
            context.db.retrying(
                lambda session: ledger.record_failed_attempt(session, claim, tries=MAX_TRIES, delay=delay, error=report)
            )

    def _reason(self, error: Exception) -> tuple[str, str]:
        if isinstance(error, UnknownKind):
            return str(error.code), str(error)
        if isinstance(error, NotFound) and self._task is Task.FINISH:
            return "results_lost", str(error)
        return "internal_error", "an internal error, see the worker's log."


class _ShardAttempt:
    """An attempt at a shard. An error ends the task, and the shard runs again after the lease of the claim."""

    storage: tuple[type[Exception], ...] = (StorageFull, StorageUnavailable, NotFound)

    def __init__(self, claim: ShardClaim) -> None:
        self.run: ShardRun | None = None
        self.epoch = claim.epoch
        self.log_fields = {"task": Task.RUN.value, "job_id": claim.job.id, "shard": claim.n}

    def release(self, delay: float, waiting_for: str | None) -> None:
        assert self.run is not None
        self.run.release(delay, waiting_for)

    def fail(self, error: Exception) -> None:
        raise error


@contextmanager
def _record_end(context: Context, attempt: _JobAttempt | _ShardAttempt) -> Iterator[None]:
    """Record how the work under a claim ended, by its exception."""
    try:
        yield
    except ClaimLost:
        log.info("claim_lost", extra={**attempt.log_fields, "epoch": attempt.epoch})
    except Abandoned as reason:
        attempt.release(reason.delay, reason.waiting_for)
    except GaveUp as reason:
        times = attempt.epoch // 2 if reason.grows else 0  # claims so far
        attempt.release(min(reason.delay * 2 ** min(times, 5), max(reason.delay, MAX_DELAY)), "model")
    except attempt.storage as error:
        _storage_failed.warn(**attempt.log_fields, error=str(error.__cause__ or error))
        attempt.release(context.timings.storage_retry, "disk")
    except Exception as error:  # noqa: BLE001 (the boundary of the work on one claim: whatever is raised ends it)
        if isinstance(error, DatabaseBusy) and not isinstance(error, TookTooLong):
            database_away.warn(**attempt.log_fields)
            attempt.release(context.timings.database_retry, None)
        else:
            attempt.fail(error)
