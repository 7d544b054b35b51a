"""One attempt at a piece of work: its claim, the exception that delays it, and the base of runs of shards."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim
from jobs.ledger.slot_weights import STALLS_BEFORE_ISOLATION
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Shard
from jobs.queues import Task
from jobs.security.ended_keys import find_ends
from jobs.usage import budgets
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

C = TypeVar("C", JobClaim, ShardClaim)
_ISOLATED_ATTEMPTS = 2  # of one line, when its worker died each time


def claim_job(context: Context, job_id: str, task: Task) -> JobClaim | None:
    """Claim a job for `task`, as `ledger.claim` does; None when there is nothing to claim.

    A job whose key has ended is not planned: the dispatcher ends it.
    """

    def take(session: Session) -> JobClaim | None:
        if task is Task.PLAN and find_ends(session, [job_id]):
            return None
        return ledger.claim(session, job_id, task, context.worker_id)

    def free(session: Session, claim: JobClaim) -> None:
        conditions = Job.id == job_id, Job.epoch == claim.epoch, Job.worker_id == context.worker_id
        if session.scalar(select(Job.id).where(*conditions)) is not None:
            ledger.release(session, job_id, claim.epoch)

    return _claim(context, take, free)


def claim_shard(context: Context, job_id: str, n: int, *, queue: str | None = None) -> ShardClaim | None:
    """Claim a shard, as `shards.claim` does.

    Return None when there is nothing to claim, the job's key has ended, or its project may spend no more.
    """

    def take(session: Session) -> ShardClaim | None:
        if find_ends(session, [job_id]):
            return None
        if context.limited_projects.refresh(session) and budgets.hold_back(session, job_id, n, context.price_source):
            return None
        return shards.claim(session, job_id, n, context.worker_id, queue=queue)

    def free(session: Session, claim: ShardClaim) -> None:
        conditions = (
            Shard.job_id == job_id,
            Shard.n == n,
            Shard.epoch == claim.epoch,
            Shard.worker_id == context.worker_id,
        )
        if session.scalar(select(Shard.n).where(*conditions)) is not None:
            shards.release(session, claim)

    return _claim(context, take, free)


def _claim(context: Context, take: Callable[[Session], C | None], free: Callable[[Session, C], None]) -> C | None:
    """Claim again where the database's answer to a claim was lost: the claim may have been committed.

    What may have been claimed is released and claimed again in one transaction, under another epoch. So a thread of
    this worker that holds the former claim has lost it.
    """
    taken: list[C] = []

    def claim(session: Session) -> C | None:
        for lost in taken:
            free(session, lost)
        if (result := take(session)) is not None:
            taken.append(result)
        return result

    return context.db.retrying(claim, context.stop)


class Abandoned(Exception):
    """The claim ended, or the work has to wait: for `delay` seconds, and for `waiting_for`."""

    def __init__(self, delay: float = 0.0, waiting_for: str | None = None) -> None:
        super().__init__(waiting_for)
        self.delay = delay
        self.waiting_for = waiting_for


def stop_all(context: Context, claim: JobClaim, end: JobState, errors: Sequence[Mapping[str, Any]] = ()) -> None:
    """Stop all shards that a job with this `end` will not run, some in each transaction. Raises ClaimLost."""
    while context.db.retrying(partial(ledger.stop, claim=claim, end=end, errors=errors)):
        context.db.breathe(context.stop)


class ShardRun:
    """One claim on one shard.

    `closed`: the shard is done. `finishing`: the claim on the job's finish that came with it. `ended`: the job ended.
    """

    finishing: JobClaim | None = None
    ended = False

    def __init__(self, context: Context, claim: ShardClaim, handle: ClaimHandle) -> None:
        self.context = context
        self.claim = claim
        self.handle = handle
        self.seq = 0
        self.closed = False

    @property
    def is_isolated(self) -> bool:
        """Return whether the shard is in isolation mode: workers died of it, so it runs one line at a time."""
        return self.claim.stalls >= STALLS_BEFORE_ISOLATION or self.claim.isolated_line is not None

    def has_killed_workers(self, line: int) -> bool:
        """Return whether workers died of a line at each of its tries in isolation mode."""
        return line == self.claim.isolated_line and self.claim.isolated_attempts >= _ISOLATED_ATTEMPTS

    def run_lines(self) -> None:
        """Run the lines that no segment covers.

        Raises Abandoned, ClaimLost, GaveUp, StorageFull, StorageUnavailable, NotFound.
        """
        raise NotImplementedError

    def release(self, delay: float, waiting_for: str | None) -> None:
        """End the claim without closing the shard."""
        self.context.db.retrying(
            lambda session: shards.release(session, self.claim, delay=delay, waiting_for=waiting_for)
        )
