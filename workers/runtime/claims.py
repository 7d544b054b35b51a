"""Claims, also where the answer to one gets lost: it may have been committed all the same, and nobody would hold it.

The next time what was taken so is freed and taken anew, in one transaction. It comes under another epoch, so that a
thread of this worker which has come to it meanwhile is fenced.
"""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim
from jobs.ledger.tables import Job, Shard
from jobs.queues import Task
from workers.runtime.context import Context

C = TypeVar("C", JobClaim, ShardClaim)


def job(context: Context, job_id: str, task: Task) -> JobClaim | None:
    """As `ledger.claim`."""

    def take(session: Session) -> JobClaim | None:
        return ledger.claim(session, job_id, task, context.worker_id)

    def free(session: Session, claim: JobClaim) -> None:
        mine = Job.id == job_id, Job.epoch == claim.epoch, Job.worker_id == context.worker_id
        if session.scalar(select(Job.id).where(*mine)) is not None:
            ledger.put_back(session, job_id, claim.epoch)

    return _claimed(context, take, free)


def shard(context: Context, job_id: str, n: int, *, queue: str | None = None) -> ShardClaim | None:
    """As `shards.claim`."""

    def take(session: Session) -> ShardClaim | None:
        return shards.claim(session, job_id, n, context.worker_id, queue=queue)

    def free(session: Session, claim: ShardClaim) -> None:
        mine = Shard.job_id == job_id, Shard.n == n, Shard.epoch == claim.epoch, Shard.worker_id == context.worker_id
        if session.scalar(select(Shard.n).where(*mine)) is not None:
            shards.give_back(session, claim)

    return _claimed(context, take, free)


def _claimed(context: Context, take: Callable[[Session], C | None], free: Callable[[Session, C], None]) -> C | None:
    taken: list[C] = []

    def claim(session: Session) -> C | None:
        for lost in taken:
            free(session, lost)
        if (found := take(session)) is not None:
            taken.append(found)
        return found

    return context.db.retrying(claim, context.stop)
