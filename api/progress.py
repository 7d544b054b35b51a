"""How far jobs are. Until a job has ended its counts and tokens are sums over its shards; then they are its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.models import Job, Shard
from jobs.states import TERMINAL


@dataclass(frozen=True, slots=True)
class Totals:
    """Items and tokens of one job so far."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def totals(session: Session, jobs: Sequence[Job]) -> dict[str, Totals]:
    """The totals of some jobs, in one query for all that are live."""
    found = {job.id: _final(job) for job in jobs if job.state in TERMINAL}
    live = [job.id for job in jobs if job.state not in TERMINAL]
    sums = [func.sum(getattr(Shard, name)) for name in _TOKENS]
    rows = session.execute(
        select(Shard.job_id, func.sum(Shard.done - Shard.failed), func.sum(Shard.failed), *sums)
        .where(Shard.job_id.in_(live))
        .group_by(Shard.job_id)
    )
    found.update((row[0], Totals(*map(int, row[1:]))) for row in rows)
    return {job.id: found.get(job.id, Totals()) for job in jobs}


def _final(job: Job) -> Totals:
    return Totals(job.completed, job.failed, *(getattr(job, name) for name in _TOKENS))
