"""The outbox: the messages that are pending. This table is the queue of record; the broker only notifies workers.

enqueue ──▶ row (published_at NULL) ──dispatcher publishes──▶ published ──claim──▶ row deleted
                                              ▲                   │
                                              └─── unclaimed ─────┘  again after 10, 20, 40, 60 s
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import inserting
from jobs.files.tables import File
from jobs.ledger import kinds, slot_weights
from jobs.ledger.states import CLOSING, JobState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.queues import Task
from jobs.security.tables import Project

JOB = -1  # `shard_n` of a message for the job itself

#: Bytes of an input that is planned in no time: a published message may name several such jobs.
SMALL_BYTES = 65_536
PLANS = 8

#: The deadline in a message of a job that has none.
NEVER: Final = 2.0**53
#: Seconds. A message that is due much later was enqueued before the clock was set back: it is due now.
MAX_DELAY = 60.0
_SLACK = 60.0  # seconds by which the clocks of two hosts may differ
#: After so many claims on a job itself, the next ones wait: each claim may have killed its worker.
_BACKOFF_EPOCHS = 16

#: The job's states in which each message may be published; others wait (a shard of a job that is being planned).
READY: dict[Task, frozenset[JobState]] = {
    Task.PLAN: frozenset({JobState.QUEUED}),
    Task.RUN: frozenset({JobState.RUNNING}),
    Task.FINISH: frozenset(CLOSING),
}

#: The statements of each step of each job, built once, on the table: no session holds a message as an object meanwhile.
_outbox = table_of(Outbox)
_CLAIMED = delete(_outbox).where(
    _outbox.c.task == bindparam("its_task"),
    _outbox.c.job_id == bindparam("its_job"),
    _outbox.c.shard_n == bindparam("its_n"),
)
_CLAIMED_THERE = _CLAIMED.where(_outbox.c.queue == bindparam("its_queue"))
_SEEN = bindparam("seen", type_=_outbox.c.due_at.type)


def _is_due(at: ColumnElement[float]) -> ColumnElement[bool]:
    """Return the condition that a message is due. One without a delay is, whatever the clock of its process said."""
    undelayed = _outbox.c.due_at <= _outbox.c.created_at
    return or_(_outbox.c.due_at <= at, undelayed, _outbox.c.due_at > at + MAX_DELAY + _SLACK)


_FREE = (
    select(_outbox.c.id)
    .where(_outbox.c.id.in_(bindparam("ids", expanding=True)), _is_due(_SEEN))
    .with_for_update(skip_locked=True)
)
_MARK_PUBLISHED = (
    update(_outbox)
    .where(_outbox.c.id.in_(_FREE))
    .values(published_at=bindparam("at"), publish_count=_outbox.c.publish_count + 1)
)


@dataclass(frozen=True, slots=True)
class DueMessage:
    """A message that is due: ids only. `slot_weight` is the part of a worker's slot that its work takes."""

    id: int
    task: str
    queue: str
    job_id: str
    shard_n: int
    project_id: str
    slot_weight: float = 1.0
    publish_count: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """The names of models and aliases that the live workers of a queue serve: these, or with `but` all others."""

    names: frozenset[str]
    but: bool = False

    def has(self, name: str) -> bool:
        return (name in self.names) is not self.but

    def among(self, name: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[bool]:
        """Return the same condition for a column."""
        return name.not_in(self.names) if self.but else name.in_(self.names)


#: Where the served models are not known, nothing is held back.
ALL = Served(frozenset(), but=True)


def claim_backoff(epoch: int) -> float:
    """Return the seconds until a job whose claim of `epoch` was lost may be claimed again: 0 at first, at most 60."""
    return min(2.0 ** min((epoch - _BACKOFF_EPOCHS) // 2, 6), MAX_DELAY) if epoch >= _BACKOFF_EPOCHS else 0.0


def urgency(job: Job) -> float:
    """Return the deadline by which a job's messages are ordered: those of a job without one come last."""
    return NEVER if job.deadline is None else job.deadline


def enqueue(
    session: Session, job: Job, task: Task, queue: str, shards: Iterable[int] = (JOB,), delay: float = 0.0
) -> None:
    """Enqueue messages in the caller's transaction, one for each of `shards`.

    A message that is there stays as it is.
    """
    created = now()
    rows = [
        {
            "task": task,
            "queue": queue,
            "job_id": job.id,
            "shard_n": n,
            "project_id": job.project_id,
            "priority": job.priority,
            "deadline": urgency(job),
            "created_at": created,
            "due_at": created + min(delay, MAX_DELAY),
            "publish_count": 0,
        }
        for n in shards
    ]
    if rows:
        connection = session.connection()
        connection.execute(_insert_messages(connection.dialect.name), rows)


@cache
def _insert_messages(dialect: str) -> Any:
    return inserting(dialect)(_outbox).on_conflict_do_nothing()


def remove_claimed(session: Session, task: Task, job_id: str, shard_n: int = JOB, queue: str | None = None) -> None:
    """Delete the message of work that was claimed, with `queue` only if it is of that queue."""
    its = {"its_task": task, "its_job": job_id, "its_n": shard_n}
    if queue is None:
        session.connection().execute(_CLAIMED, its)
    else:
        session.connection().execute(_CLAIMED_THERE, {**its, "its_queue": queue})


def forget(session: Session, job_id: str) -> None:
    """Delete all messages of a job."""
    session.execute(delete(Outbox).where(Outbox.job_id == job_id))


def waiting_projects(session: Session, queue: str, at: float) -> list[str]:
    """Return the projects with a due, unpublished message on `queue`."""
    return list(session.scalars(_WAITING, {"on": queue, "at": at}))


def due(
    session: Session,
    queue: str,
    project_id: str,
    at: float,
    limit: int,
    served: Served = ALL,
    only: ColumnElement[bool] | None = None,
    shard: ColumnElement[float] = slot_weights.WHOLE,
) -> Sequence[DueMessage]:
    """Return the next messages of a project by priority, deadline and age, where their job is in a state for them.

    Shards whose model is not `served` are passed over: they would only hide those that can be run. `only` is a further
    condition on the message and its job. `shard` is the part of a slot that a shard takes.
    """
    statement = _due(served, shard)
    if only is not None:
        statement = statement.where(only)
    rows = session.execute(statement, {"on": queue, "of": project_id, "at": at, "most": limit})
    return [DueMessage(*row) for row in rows]


def is_any_other_waiting(
    session: Session, queue: str, project_id: str, at: float, only: ColumnElement[bool] | None = None
) -> bool:
    """Return whether a message of another project is due on a queue, published or not, and its job waits for no more.

    `only` is a further condition on the message and its job.
    """
    others = select(Outbox.id).join(Job, Job.id == Outbox.job_id).where(Job.waiting_for.is_(None), ready(at))
    others = others.where(Outbox.queue == queue, Outbox.project_id != project_id, Outbox.due_at <= at)
    return bool(session.scalar(select((others if only is None else others.where(only)).exists())))


def mark_published(session: Session, ids: Sequence[int], seen: float | None = None) -> None:
    """Note that messages were published, or are about to be: publishing one twice is harmless.

    A message that is being claimed at this moment is passed over: waiting for it while others are locked could be a
    deadlock. So is a message that was unpublished after it was `seen` to be due.
    """
    at = now()
    session.connection().execute(_MARK_PUBLISHED, {"ids": ids, "at": at, "seen": at if seen is None else seen})


def unpublish(session: Session, task: Task, job_id: str, shard_n: int = JOB, *, delay: float = 0.0) -> None:
    """Note that a message is to be published again after `delay`: a worker took it that may not claim its work."""
    its = and_(Outbox.task == task, Outbox.job_id == job_id, Outbox.shard_n == shard_n)
    session.execute(update(Outbox).where(its).values(published_at=None, due_at=now() + delay))


#: How many unclaimed messages are looked at in one go.
UNCLAIMED: Final = 1000


def unclaimed_messages(
    session: Session, queues: Collection[str] | None = None, shard: ColumnElement[float] = slot_weights.WHOLE
) -> Sequence[DueMessage]:
    """Return the oldest messages that are published and unclaimed, of `queues` or all: `UNCLAIMED` at most.

    `shard` is the part of a slot that a shard takes.
    """
    published = _MESSAGES.add_columns(slot_weight(shard), Outbox.publish_count).where(Outbox.published_at.is_not(None))
    if queues is not None:
        published = published.where(Outbox.queue.in_(queues))
    return [DueMessage(*row) for row in session.execute(published.order_by(Outbox.id).limit(UNCLAIMED))]


def depth(session: Session) -> dict[str, tuple[int, float]]:
    """Return for each queue the number of pending messages and the creation time of the oldest (unix seconds)."""
    rows = session.execute(select(Outbox.queue, func.count(), func.min(Outbox.created_at)).group_by(Outbox.queue))
    return {queue: (count, oldest) for queue, count, oldest in rows}


#: `Job.waiting_for` of a job whose shards wait until its project may spend more: see `jobs.usage.budgets`.
SPEND_LIMIT: Final = "spend_limit"


def ready(at: ColumnElement[float] | float) -> ColumnElement[bool]:
    """Return the condition that a job is in a state for its message.

    Only `run` waits for the job's `not_before`, and for its project's spend limit.
    """
    begun = or_(Job.not_before.is_(None), Job.not_before <= at)
    begun = or_(Outbox.task != Task.RUN, and_(begun, Job.waiting_for.is_distinct_from(SPEND_LIMIT)))
    return and_(begun, or_(*(and_(Outbox.task == task, Job.state.in_(states)) for task, states in READY.items())))


#: The model that a worker must have for a job.
NEEDED_MODEL: Final = func.coalesce(Job.serves_as, Job.model)


@lru_cache(maxsize=64)
def _due(served: Served, shard: ColumnElement[float]) -> Select[int, str, str, str, int, str, float]:
    """Build the statement of `due`. A queue in which a shard is only prepared (parsing) needs no model."""
    due = _DUE.add_columns(slot_weight(shard))
    if served == ALL:
        return due
    named = or_(Outbox.task != Task.RUN, Outbox.queue != Job.queue, Job.model.is_(None), served.among(NEEDED_MODEL))
    return due.where(named)


def slot_weight(shard: ColumnElement[float]) -> ColumnElement[float]:
    """Return the part of a slot that a message's work takes; needs the joins `INPUT` and `SHARD`.

    Jobs of a kind with a slot weight of its own are not planned in no time, however small their input is.
    """
    slow = kinds.names(lambda kind: kind.slot_weight is not None)
    small = and_(File.bytes.is_not(None), File.bytes <= SMALL_BYTES, Job.kind.not_in(slow))
    return case((small, literal(1 / PLANS, Float)), else_=shard)


#: The joins of the input file to a `plan` message, and of the shard to a `run` message.
INPUT = and_(Outbox.task == Task.PLAN, File.id == Job.input_file_id)
SHARD = and_(Outbox.task == Task.RUN, Shard.job_id == Outbox.job_id, Shard.n == Outbox.shard_n)

#: The statements of each tick, built once.
_AT = bindparam("at", type_=Outbox.due_at.type)
_UNPUBLISHED = and_(Outbox.queue == bindparam("on"), Outbox.published_at.is_(None), _is_due(_AT))
_WAITING = select(Project.id).where(exists().where(Outbox.project_id == Project.id, _UNPUBLISHED))
_MESSAGES = (
    select(Outbox.id, Outbox.task, Outbox.queue, Outbox.job_id, Outbox.shard_n, Outbox.project_id)
    .join(Job, Job.id == Outbox.job_id)
    .outerjoin(File, INPUT)
    .outerjoin(Shard, SHARD)
)
_DUE = (
    _MESSAGES.where(Outbox.project_id == bindparam("of"), _UNPUBLISHED, ready(_AT))
    .order_by(Outbox.priority.desc(), Outbox.deadline, Outbox.id)
    .limit(bindparam("most", type_=Outbox.id.type))
)
