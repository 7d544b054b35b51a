"""The outbox: doorbells owed to the broker. The queue of record is this table; the broker only rings.

owe ──▶ row (rung_at NULL) ──dispatcher rings──▶ rung ──claim──▶ row deleted
                                    ▲               │
                                    └── not heard ──┘  again after 10, 20, 40, 60 s
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
from jobs.ledger import shares
from jobs.ledger.states import CLOSING, JobState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.queues import Task
from jobs.security.tables import Project

JOB = -1  # shard_n of a doorbell for the job itself

#: An input that is planned in no time: a doorbell may name several such jobs.
SMALL_BYTES = 65_536
PLANS = 8

#: The deadline in a message of a job that has none.
NEVER: Final = 2.0**53
#: Seconds. What is due much later than this was owed by a clock that has been set back since: it is due now.
LONGEST_DELAY = 60.0
_SLACK = 60.0  # seconds by which the clocks of two hosts may differ
#: So many claims on a job itself follow each other at once; where each kills its worker, further ones wait.
_CALM_EPOCHS = 16

#: The job's states in which each doorbell means something; others wait (a shard of a job being planned).
READY: dict[Task, frozenset[JobState]] = {
    Task.PLAN: frozenset({JobState.QUEUED}),
    Task.RUN: frozenset({JobState.RUNNING}),
    Task.FINISH: frozenset(CLOSING),
}

#: What each step of each job asks, built once, of the table: no session holds a doorbell as an object meanwhile.
_outbox = table_of(Outbox)
_CLAIMED = delete(_outbox).where(
    _outbox.c.task == bindparam("its_task"),
    _outbox.c.job_id == bindparam("its_job"),
    _outbox.c.shard_n == bindparam("its_n"),
)
_CLAIMED_THERE = _CLAIMED.where(_outbox.c.queue == bindparam("its_queue"))
_SEEN = bindparam("seen", type_=_outbox.c.due_at.type)


def _due_by(at: ColumnElement[float]) -> ColumnElement[bool]:
    return or_(_outbox.c.due_at <= at, _outbox.c.due_at > at + LONGEST_DELAY + _SLACK)


_FREE = (
    select(_outbox.c.id)
    .where(_outbox.c.id.in_(bindparam("ids", expanding=True)), _due_by(_SEEN))
    .with_for_update(skip_locked=True)
)
_HANDED_OVER = update(_outbox).where(_outbox.c.id.in_(_FREE)).values(rung_at=bindparam("at"), rings=_outbox.c.rings + 1)


@dataclass(frozen=True, slots=True)
class Ring:
    """One doorbell, as published: ids only. `share` is what its work takes of a slot."""

    id: int
    task: str
    queue: str
    job_id: str
    shard_n: int
    project_id: str
    share: float = 1.0
    rings: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """The models, and other names of them, that the live workers of a queue answer: these, or with `but` all others."""

    names: frozenset[str]
    but: bool = False

    def has(self, name: str) -> bool:
        return (name in self.names) is not self.but

    def among(self, name: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[bool]:
        """The same of a column."""
        return name.not_in(self.names) if self.but else name.in_(self.names)


#: What nobody can say is not held back.
ALL = Served(frozenset(), but=True)


def calming(epoch: int) -> float:
    """Seconds until a job that was lost in this claim may be claimed again: 0 at first, in the end a minute."""
    return min(2.0 ** min((epoch - _CALM_EPOCHS) // 2, 6), LONGEST_DELAY) if epoch >= _CALM_EPOCHS else 0.0


def urgency(job: Job) -> float:
    """Return the deadline by which a job's messages are ordered: those of a job without one come last."""
    return NEVER if job.deadline is None else job.deadline


def owe(session: Session, job: Job, task: Task, queue: str, shards: Iterable[int] = (JOB,), delay: float = 0.0) -> None:
    """Owe the broker doorbells, in the caller's transaction. One owed already is not owed twice."""
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
            "due_at": created + min(delay, LONGEST_DELAY),
            "rings": 0,
        }
        for n in shards
    ]
    if rows:
        connection = session.connection()
        connection.execute(_owing(connection.dialect.name), rows)


@cache
def _owing(dialect: str) -> Any:
    return inserting(dialect)(_outbox).on_conflict_do_nothing()


def settle(session: Session, task: Task, job_id: str, shard_n: int = JOB, queue: str | None = None) -> None:
    """The work was claimed: its doorbell (in that queue) is no longer owed."""
    its = {"its_task": task, "its_job": job_id, "its_n": shard_n}
    if queue is None:
        session.connection().execute(_CLAIMED, its)
    else:
        session.connection().execute(_CLAIMED_THERE, {**its, "its_queue": queue})


def forget(session: Session, job_id: str) -> None:
    """Nothing more is to be done for this job but what is owed after this call."""
    session.execute(delete(Outbox).where(Outbox.job_id == job_id))


def waiting_projects(session: Session, queue: str, at: float) -> list[str]:
    """Projects with an unrung, due doorbell on `queue`."""
    return list(session.scalars(_WAITING, {"on": queue, "at": at}))


def due(
    session: Session,
    queue: str,
    project_id: str,
    at: float,
    limit: int,
    served: Served = ALL,
    only: ColumnElement[bool] | None = None,
    shard: ColumnElement[float] = shares.WHOLE,
) -> Sequence[Ring]:
    """The next doorbells of one project: by priority, deadline, age; only where the job is ready for them.

    `shard` is what one takes of a slot.

    What nobody could answer is passed over: it would only take the places of what somebody could. `only` is a further
    condition on the doorbell and its job.
    """
    statement = _due(served, shard)
    if only is not None:
        statement = statement.where(only)
    rows = session.execute(statement, {"on": queue, "of": project_id, "at": at, "most": limit})
    return [Ring(*row) for row in rows]


def rung(session: Session, ids: Sequence[int], seen: float | None = None) -> None:
    """These doorbells were handed to the broker (or are about to be: ringing twice is harmless).

    One that is being claimed at this moment is passed over: to wait for it while holding others could be for ever.
    So is one that was sent back already, since it was `seen` to be due.
    """
    at = now()
    session.connection().execute(_HANDED_OVER, {"ids": ids, "at": at, "seen": at if seen is None else seen})


def unring(session: Session, task: Task, job_id: str, shard_n: int = JOB, *, delay: float = 0.0) -> None:
    """A doorbell was heard by one who may not answer it: it waits to be rung as if it never had been."""
    owed = and_(Outbox.task == task, Outbox.job_id == job_id, Outbox.shard_n == shard_n)
    session.execute(update(Outbox).where(owed).values(rung_at=None, due_at=now() + delay))


#: How many of them are looked at in one go.
UNHEARD: Final = 1000


def unheard(session: Session, queues: Collection[str] | None = None) -> Sequence[Outbox]:
    """Doorbells rung and not yet claimed, the oldest, of these queues or all: `UNHEARD` at most."""
    rung = select(Outbox).where(Outbox.rung_at.is_not(None))
    if queues is not None:
        rung = rung.where(Outbox.queue.in_(queues))
    return session.scalars(rung.order_by(Outbox.id).limit(UNHEARD)).all()


def depth(session: Session) -> dict[str, tuple[int, float]]:
    """Per queue: how many doorbells wait and since when the oldest does (unix seconds)."""
    rows = session.execute(select(Outbox.queue, func.count(), func.min(Outbox.created_at)).group_by(Outbox.queue))
    return {queue: (count, oldest) for queue, count, oldest in rows}


def ready(at: ColumnElement[float] | float) -> ColumnElement[bool]:
    """Where the job is in a state for it. Only running waits for the job's time: its input is judged before."""
    begun = or_(Outbox.task != Task.RUN, Job.not_before.is_(None), Job.not_before <= at)
    return and_(begun, or_(*(and_(Outbox.task == task, Job.state.in_(states)) for task, states in READY.items())))


#: The model that a worker must have for a job.
NEEDED_MODEL: Final = func.coalesce(Job.serves_as, Job.model)


@lru_cache(maxsize=64)
def _due(served: Served, shard: ColumnElement[float]) -> Select[int, str, str, str, int, str, float]:
    """What the models of a queue's own jobs keep back is left out; a queue where a shard is only prepared has none."""
    due = _DUE.add_columns(share(shard))
    if served == ALL:
        return due
    named = or_(Outbox.task != Task.RUN, Outbox.queue != Job.queue, Job.model.is_(None), served.among(NEEDED_MODEL))
    return due.where(named)


def share(shard: ColumnElement[float]) -> ColumnElement[float]:
    """What a doorbell's work takes of a slot, beside its job, the job's input file and its shard."""
    return case((and_(File.bytes.is_not(None), File.bytes <= SMALL_BYTES), literal(1 / PLANS, Float)), else_=shard)


#: What joins the file to a doorbell that is to plan it, and a doorbell's shard.
INPUT = and_(Outbox.task == Task.PLAN, File.id == Job.input_file_id)
SHARD = and_(Outbox.task == Task.RUN, Shard.job_id == Outbox.job_id, Shard.n == Outbox.shard_n)

#: What each tick asks, built once.
_AT = bindparam("at", type_=Outbox.due_at.type)
_UNRUNG = and_(Outbox.queue == bindparam("on"), Outbox.rung_at.is_(None), _due_by(_AT))
_WAITING = select(Project.id).where(exists().where(Outbox.project_id == Project.id, _UNRUNG))
_DUE = (
    select(Outbox.id, Outbox.task, Outbox.queue, Outbox.job_id, Outbox.shard_n, Outbox.project_id)
    .join(Job, Job.id == Outbox.job_id)
    .outerjoin(File, INPUT)
    .outerjoin(Shard, SHARD)
    .where(Outbox.project_id == bindparam("of"), _UNRUNG, ready(_AT))
    .order_by(Outbox.priority.desc(), Outbox.deadline, Outbox.id)
    .limit(bindparam("most", type_=Outbox.id.type))
)
