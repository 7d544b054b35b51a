"""Removal: the rows of jobs that ended long ago go, where a deployment says when.

What such a job left elsewhere goes before: its shards and segments, and its events with their deliveries. A job stays
as long as any of these is there, or a row of a room names it (`Kind.result`, `Kind.named_by`), a live job waits for it
or was made for it, its own parent is there, or `total` lacks it.
"""

from collections.abc import Collection

from sqlalchemy import ColumnElement, delete, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from jobs.db.engine import UNSEEN
from jobs.inference.tables import CacheEntry
from jobs.ledger import kinds, totals
from jobs.ledger.states import LIVE, TERMINAL
from jobs.ledger.tables import Job, JobDependency, Outcome, Segment, Shard
from jobs.webhooks.tables import Event

_OTHER = aliased(Job)
_WAITS_FOR_IT = exists().where(
    JobDependency.after_id == Job.id, _OTHER.id == JobDependency.job_id, _OTHER.state.in_(LIVE)
)
_LIVE_CHILD = exists().where(_OTHER.parent_id == Job.id, _OTHER.state.in_(LIVE))
_PARENT = exists().where(_OTHER.id == Job.parent_id)

#: A job that has rows inside.
FULL = or_(exists().where(Shard.job_id == Job.id), exists().where(Segment.job_id == Job.id))


def has_ended_before(at: float) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that a job ended before a time in Unix seconds."""
    ended = func.coalesce(Job.completed_at, Job.failed_at, Job.expired_at, Job.cancelled_at)
    return Job.state.in_(TERMINAL), ended < at


def remove(session: Session, job_ids: Collection[str], before: float) -> int:
    """Remove those of these jobs that ended before a time and that nothing needs; return their number."""
    needed = or_(
        FULL,
        exists().where(Event.subject_id == Job.id),
        exists().where(CacheEntry.job_id == Job.id),
        _WAITS_FOR_IT,
        _LIVE_CHILD,
        _PARENT,
        kinds.is_named(),
    )
    old = select(Job.id).where(Job.id.in_(job_ids), *has_ended_before(before), totals.is_counted(), ~needed)
    removed = session.scalars(old.with_for_update(of=Job)).all()
    for deletion in (
        delete(Outcome).where(Outcome.job_id.in_(removed)),
        delete(JobDependency).where(JobDependency.job_id.in_(removed)),
        delete(Job).where(Job.id.in_(removed)),
    ):
        session.execute(deletion, execution_options=UNSEEN)
    return len(removed)
