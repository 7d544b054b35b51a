"""Dependencies: a job may wait for other jobs of its project, its predecessors.

    submit(after=…) ─┬─ all have completed ──────────────────────────────────▶ its plan message is enqueued
                     └─ waits: `waiting_for` is `job`, it has no message and cannot be claimed
                            ├─ the last one completes (its transaction, or the sweep) ──▶ enqueued
                            ├─ one fails, expires or is cancelled (the sweep) ──▶ failed, `dependency_failed`,
                            │                 but cancelled where its parent is cancelled or has expired
                            └─ it is cancelled, or its own deadline passes ──▶ as any other job

The transaction that ends a predecessor passes over a dependent that another transaction has locked: so it never waits
for a lock, and two predecessors that end at once on PostgreSQL may each see the other one open. Maintenance looks for
such dependents every few seconds, and advances those that the bounded number in that transaction has left over.

There are no cycles. An edge is written once, in the transaction that creates its job, and names a job that exists
already; ids are random, so no client can name a job before it exists. A create that is repeated under its
`Idempotency-Key` returns the first answer and creates nothing. A step of a pipeline gets one more edge, to the job that
it makes (`ledger.wait_for_jobs`), which waits for nothing.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, and_, bindparam, exists, func, insert, literal_column, select
from sqlalchemy.orm import Session, aliased

from jobs.db.base import table_of
from jobs.errors import InvalidRequest
from jobs.ledger.states import CLOSING, JobState
from jobs.ledger.tables import Job, JobDependency

#: `Job.waiting_for` of a job that waits for others.
WAITING: Final = "job"
#: A job names so many predecessors at most.
MAX_DEPENDENCIES: Final = 100
#: So many dependents are released in the transaction that completes a job; the sweep releases the others.
RELEASED_AT_ONCE: Final = 50

_UNFINISHED: Final = frozenset({JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED})
_HOPELESS: Final = _UNFINISHED | {source for source, target in CLOSING.items() if target in _UNFINISHED}
#: A parent in one of these states has its children cancelled: they do not fail because of each other meanwhile.
_STOPPED: Final = _HOPELESS - {JobState.FAILED}

#: The state is a literal: with a parameter SQLite cannot use the partial index.
_WAITS = Job.waiting_for == literal_column(f"'{WAITING}'")
_PREDECESSOR = aliased(Job)
_ITS_JOB = bindparam("its_job", type_=table_of(Job).c.id.type)
_EDGE = and_(JobDependency.job_id == _ITS_JOB, _PREDECESSOR.id == JobDependency.after_id)


def _has_predecessor(state: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether a job has a predecessor in such a state."""
    return exists().where(JobDependency.job_id == Job.id, _PREDECESSOR.id == JobDependency.after_id, state)


_OPEN = _PREDECESSOR.state != JobState.SUCCEEDED
_FAILED = _PREDECESSOR.state.in_(_UNFINISHED)
_IS_OPEN = select(exists().where(_EDGE, _OPEN))
_COMPLETED_AT = select(func.max(_PREDECESSOR.completed_at)).where(_EDGE)
_PARENT = aliased(Job)
_PARENT_STOPPED = exists().where(_PARENT.id == Job.parent_id, _PARENT.state.in_(_STOPPED))
_FAILED_ONE = (
    select(_PREDECESSOR.id, _PREDECESSOR.state)
    .where(_EDGE, _FAILED, Job.id == JobDependency.job_id, ~_PARENT_STOPPED)
    .order_by(_PREDECESSOR.id)
    .limit(1)
)
_DEPENDENTS = (
    select(Job.id)
    .join(JobDependency, JobDependency.job_id == Job.id)
    .where(JobDependency.after_id == _ITS_JOB, _WAITS)
    .order_by(Job.id)
    .limit(RELEASED_AT_ONCE)
    .with_for_update(of=Job, skip_locked=True)
)
_RELEASABLE = select(Job.id).where(_WAITS, ~_has_predecessor(_OPEN))
_FAILING = select(Job.id).where(_WAITS, _has_predecessor(_FAILED), ~_PARENT_STOPPED)
_ADD = insert(table_of(JobDependency))


def add(session: Session, job: Job, after: Sequence[str]) -> None:
    """Let a job that has not begun wait for the jobs named in `after`; an id named twice counts once.

    Raises InvalidRequest for an id that is no job of the same project, or whose job cannot complete any more.
    """
    states = dict[str, str]()
    if after:
        named = select(Job.id, Job.state).where(Job.id.in_(after), Job.project_id == job.project_id)
        states = dict(session.execute(named).all())
    for position, job_id in enumerate(after):
        if job_id not in states:
            message = f"No job found with id '{job_id}'."
            raise InvalidRequest(message, param=f"after[{position}]", code="job_not_found")
        if states[job_id] in _HOPELESS:
            message = f"Job '{job_id}' is {states[job_id]}: a job that waits for it would never run."
            raise InvalidRequest(message, param=f"after[{position}]", code="dependency_failed")
    if after:
        rows = [{"job_id": job.id, "after_id": job_id} for job_id in states]
        session.connection().execute(_ADD, rows)


def is_open(session: Session, job_id: str) -> bool:
    """Return whether any predecessor of a job has not completed."""
    return bool(session.connection().execute(_IS_OPEN, {"its_job": job_id}).scalar())


def failed_predecessor(session: Session, job_id: str) -> tuple[str, str] | None:
    """Return the id and the state of a predecessor that ended without completing, if there is one.

    Return None for the child of a parent that is cancelled or has expired: the child will be cancelled.
    """
    row = session.connection().execute(_FAILED_ONE, {"its_job": job_id}).first()
    return (row[0], row[1]) if row else None


def predecessors(session: Session, jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Return the ids of the predecessors of each of these jobs, in one query."""
    after: dict[str, list[str]] = {job.id: [] for job in jobs}
    edges = select(JobDependency.job_id, JobDependency.after_id).where(JobDependency.job_id.in_(after))
    for job_id, after_id in session.execute(edges.order_by(JobDependency.after_id)):
        after[job_id].append(after_id)
    return after


def edges_around(session: Session, job_id: str, limit: int) -> list[tuple[str, str]]:
    """Return the edges (job, predecessor) on the ways that lead to a job and from it, the nearest first.

    These are `limit` edges at most.
    """
    edges = dict[tuple[str, str], None]()
    directions = ((JobDependency.job_id, JobDependency.after_id), (JobDependency.after_id, JobDependency.job_id))
    for near, far in directions:
        seen = level = {job_id}
        while level and len(edges) < limit:
            step = select(JobDependency.job_id, JobDependency.after_id, far).where(near.in_(level)).order_by(near, far)
            rows = session.execute(step.limit(limit - len(edges))).all()
            edges.update(((row[0], row[1]), None) for row in rows)
            level = {row[2] for row in rows} - seen
            seen = seen | level
    return list(edges)


def dependents(session: Session, job_id: str) -> Sequence[str]:
    """Lock and return some jobs that wait for this one; those that another transaction has locked are left out."""
    return session.connection().execute(_DEPENDENTS, {"its_job": job_id}).scalars().all()


def last_completion(session: Session, job_id: str) -> float:
    """Return when the last predecessor of a job completed; 0 when none has."""
    return session.connection().execute(_COMPLETED_AT, {"its_job": job_id}).scalar() or 0.0


def releasable(session: Session, limit: int) -> Sequence[str]:
    """Return jobs that still wait although all their predecessors have completed."""
    return session.scalars(_RELEASABLE.limit(limit)).all()


def failing(session: Session, limit: int) -> Sequence[str]:
    """Return jobs that wait for one that has failed, expired or was cancelled, and that will not be cancelled."""
    return session.scalars(_FAILING.limit(limit)).all()


def orphans(session: Session, limit: int) -> Sequence[str]:
    """Return live jobs whose parent will not complete: nothing needs them any more."""
    stopped = _PREDECESSOR.state.in_(_HOPELESS)
    live = Job.parent_id.is_not(None), Job.state.in_((JobState.QUEUED, JobState.RUNNING))
    made = select(Job.id).join(_PREDECESSOR, _PREDECESSOR.id == Job.parent_id)
    return session.scalars(made.where(*live, stopped).limit(limit)).all()
