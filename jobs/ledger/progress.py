"""The progress of jobs. Until a job has ended its counts and tokens are sums over its shards; then they are its own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, Row, and_, case, distinct, func, or_, select, union_all
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.ledger import kinds, outbox
from jobs.ledger.states import TERMINAL, JobState, ShardState
from jobs.ledger.tables import TOKENS, Job, Outbox, Outcome, Segment, Shard

#: By values and not by the columns: with these SQLite would begin at the segments, of which there are many.
_OF_SHARD = and_(Segment.job_id == Shard.job_id.concat(""), Segment.n == Shard.n + 0)


@dataclass(frozen=True, slots=True)
class Totals:
    """Items and tokens of one job so far."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    running: int = 0  # in shards that workers hold, and not done


def totals(session: Session, jobs: Sequence[Job]) -> dict[str, Totals]:
    """Return the totals of some jobs, in one query for all that are live."""
    result = {job.id: _final(job) for job in jobs if job.state in TERMINAL}
    live = [job.id for job in jobs if job.state not in TERMINAL]
    sums = [func.sum(getattr(Shard, name)) for name in TOKENS]
    running = func.sum(case((Shard.state == ShardState.RUNNING, Shard.lines - Shard.done), else_=0))
    rows = session.execute(
        select(Shard.job_id, func.sum(Shard.done - Shard.failed), func.sum(Shard.failed), *sums, running)
        .where(Shard.job_id.in_(live))
        .group_by(Shard.job_id)
    )
    result.update((row[0], Totals(*map(int, row[1:]))) for row in rows)
    return {job.id: result.get(job.id, Totals()) for job in jobs}


def _final(job: Job) -> Totals:
    return Totals(job.completed, job.failed, *(getattr(job, name) for name in TOKENS))


def shard_parts(session: Session, job_id: str, parts: int) -> tuple[int, Sequence[Row[Any]]]:
    """Return the number of a job's shards, and the sums of equally many neighbours each, at most `parts` of them."""
    count, highest = session.execute(select(func.count(), func.max(Shard.n)).where(Shard.job_id == job_id)).one()
    part = Shard.n // (1 + (highest or 0) // parts)
    sums = [func.sum(getattr(Shard, name)).label(name) for name in ("lines", "done", "failed")]
    states = [_count_in(state).label(name) for name, state in _STATE_COUNTS.items()]
    first = func.min(Shard.first_line).label("first_line")
    rows = select(first, *sums, func.count().label("shards"), *states).where(Shard.job_id == job_id)
    return int(count), session.execute(rows.group_by(part).order_by(part)).all()


_STATE_COUNTS = {"running": ShardState.RUNNING, "ended": ShardState.DONE}


def _count_in(state: ShardState) -> ColumnElement[Any]:
    return func.sum(case((Shard.state == state, 1), else_=0))


def outcomes(session: Session, job: Job) -> dict[str, int]:
    """Return how many lines of a job have each outcome of `workers.runtime.outcomes`: so far, or in the end."""
    if job.state in TERMINAL:
        rows = session.execute(select(Outcome.name, Outcome.count).where(Outcome.job_id == job.id))
        return {name: count for name, count in rows}  # noqa: C416 (rows are not pairs to a type checker)
    counts = Counter[str]()
    for _, counted in session.execute(outcomes_of(Job.id == job.id)):
        counts.update(counted or {})
    return dict(counts)


def outcomes_of(jobs: ColumnElement[bool]) -> CompoundSelect[Any]:
    """Select the models and outcomes of live jobs: of shards that have summed theirs, else of their segments.

    It is one statement, since a shard may end at any moment.
    """
    ended = select(Job.model, Shard.outcomes).join(Shard, Shard.job_id == Job.id)
    others = select(Job.model, Segment.outcomes).join(Shard, Shard.job_id == Job.id).join(Segment, _OF_SHARD)
    summed = Shard.outcomes.is_not(None)
    return union_all(ended.where(jobs, summed), others.where(jobs, ~summed, Shard.done > 0))


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of a job in the last seconds."""

    items_per_second: float
    tokens_per_second: float


#: Long enough to hold several segments, short enough to follow a change.
_RECENT_SECONDS = 30.0


def pace(session: Session, job: Job) -> Pace | None:
    """Return how fast a running job goes, from its segments of the last half minute; None when it does not run."""
    if job.state != JobState.RUNNING or job.in_progress_at is None:
        return None
    since = max(now() - _RECENT_SECONDS, job.in_progress_at)
    seconds = max(now() - since, 1.0)
    items = tokens = 0
    live = or_(Shard.finished_at.is_(None), Shard.finished_at > since - _RECENT_SECONDS)
    rows = session.execute(
        select(Segment.covered, Segment.input_tokens + Segment.output_tokens)
        .join(Shard, _OF_SHARD)
        .where(Shard.job_id == job.id, Shard.done > 0, live, Segment.created_at > since)
    )
    for covered, count in rows:
        items += int.from_bytes(covered, "little").bit_count()
        tokens += int(count)
    return Pace(items / seconds, tokens / seconds)


def worked_seconds(session: Session, job: Job) -> float | None:
    """Return the seconds since a job's first shard with results, or in progress, was begun, pauses included.

    None before that, when the job's shards were deleted, and for a kind without lines.
    """
    if not kinds.lenient(job.kind).has_lines:
        return None
    begun = or_(Shard.done > 0, Shard.state == ShardState.RUNNING)
    started = session.scalar(select(func.min(Shard.started_at)).where(Shard.job_id == job.id, begun))
    if started is None:
        return None
    ended = job.finalizing_at or job.expiring_at or job.cancelling_at or job.failed_at or now()
    return max(ended - started, 0.0)


def queue_position(session: Session, job: Job) -> int | None:
    """Return the number of live jobs of the same queue and project before this one; None when it has no message.

    Between projects the order is one of fair shares, so only the project's own jobs are counted.
    """
    if job.state not in (JobState.QUEUED, JobState.RUNNING):
        return None
    messages = select(func.min(Outbox.id), Outbox.queue).where(Outbox.job_id == job.id).group_by(Outbox.queue)
    first = session.execute(messages.order_by(func.min(Outbox.id)).limit(1)).one_or_none()
    if first is None:
        return None
    later = and_(Outbox.priority == job.priority, Outbox.deadline == outbox.urgency(job), Outbox.id < first[0])
    sooner = and_(Outbox.priority == job.priority, Outbox.deadline < outbox.urgency(job))
    ahead = or_(Outbox.priority > job.priority, sooner, later)
    return session.scalar(
        select(func.count(distinct(Outbox.job_id))).where(
            Outbox.queue == first[1], Outbox.project_id == job.project_id, Outbox.job_id != job.id, ahead
        )
    )
