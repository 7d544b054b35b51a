"""Pauses by the operator: of a queue, a model, a project, a worker. Intake goes on, and nothing new is begun.

    pause ──▶ row ─┬─▶ the dispatcher rings no message for it
                   └─▶ a claim on what was published before is refused, and its message is published again later

A client may pause a job of its own where the job's kind allows it: a row of scope `job`. There may be many of these, so
they are never loaded; SQL compares them with the jobs.

Running work goes on to its end. Jobs of a paused model or project are still planned and finished, and their webhooks
are sent, so that bad input is reported and results come out; a paused queue or worker does neither. A request of an
interactive client is refused, also one that is queued when the pause begins; a paused worker leaves the request queue
to others.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import ColumnElement, and_, delete, exists, func, literal, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import execute_and_count, insert_into
from jobs.fleet.tables import Pause
from jobs.ledger import audit, outbox
from jobs.ledger.tables import Job, Outbox
from jobs.queues import Queue, Task

_ELSEWHERE_SECONDS = 1.0  # until a message that a paused worker took is published again: no other may be idle


class Scope(StrEnum):
    """The kinds of things that can be paused."""

    QUEUE = "queue"
    MODEL = "model"
    PROJECT = "project"
    WORKER = "worker"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Paused:
    """The names that are paused, by scope; projects and workers by id.

    `some_jobs`: there are paused jobs, whose ids are not loaded.
    """

    names: dict[Scope, frozenset[str]] = field(default_factory=dict)
    some_jobs: bool = False

    def of(self, scope: Scope) -> frozenset[str]:
        return self.names.get(scope, frozenset())

    @property
    def is_held(self) -> ColumnElement[bool]:
        """Return the condition that a running job's shards wait for a pause to end."""
        models = ((Scope.MODEL, Job.model), (Scope.MODEL, Job.serves_as))
        names = ((Scope.QUEUE, Job.queue), *models, (Scope.PROJECT, Job.project_id))
        condition = or_(*(func.coalesce(name, "").in_(self.of(scope)) for scope, name in names))
        return or_(condition, _JOB_IS_PAUSED) if self.some_jobs else condition

    def stops(self, queue: str | None, model: str | None, project_id: str, serves_as: str | None = None) -> bool:
        """Return whether nothing new of the project is begun on that queue with that model, or the base of that."""
        names = ((Scope.QUEUE, queue), (Scope.MODEL, model), (Scope.MODEL, serves_as), (Scope.PROJECT, project_id))
        return any(name in self.of(scope) for scope, name in names)

    def holds_finishing(self, worker_id: str) -> bool:
        """Return whether this worker neither plans nor finishes a job."""
        return self.rests(Queue.PLAN, worker_id)

    def rests(self, queue: str, worker_id: str) -> bool:
        """Return whether this worker begins nothing new of that queue."""
        return queue in self.of(Scope.QUEUE) or worker_id in self.of(Scope.WORKER)

    @property
    def free(self) -> ColumnElement[bool] | None:
        """Return the condition that no pause of a model, project or job holds back a message; None: all are free.

        It is about rows of the outbox joined with their jobs.
        """
        models, projects = self.of(Scope.MODEL), self.of(Scope.PROJECT)
        if not (models or projects or self.some_jobs):
            return None
        others = (func.coalesce(name, "").not_in(models) for name in (Job.model, Job.serves_as))
        apart = and_(Job.project_id.not_in(projects), *others)
        if self.some_jobs:
            apart = and_(apart, ~_JOB_IS_PAUSED)
        return or_(Outbox.task != Task.RUN, apart)


_JOB_IS_PAUSED = exists().where(Pause.scope == Scope.JOB, Pause.name == Job.id)
#: What each claim asks, built once: the names, and one row that stands for all paused jobs.
_pause = table_of(Pause)
_NAMES = (
    select(_pause.c.scope, _pause.c.name)
    .where(_pause.c.scope != Scope.JOB)
    .union_all(select(literal(Scope.JOB.value), literal("")).where(exists().where(_pause.c.scope == Scope.JOB)))
)


def pause(session: Session, scope: Scope, name: str, *, actor: str, reason: str | None = None) -> bool:
    """Pause `name`: nothing new begins there. Return False when it was paused already."""
    row = {"scope": scope, "name": name, "reason": reason, "created_at": now()}
    new = insert_into(session, Pause).values(row).on_conflict_do_nothing().returning(Pause.name)
    if session.scalar(new) is None:
        return False
    audit.record(session, actor=actor, action=f"{scope}.pause", target=name)
    return True


def resume(session: Session, scope: Scope, name: str, *, actor: str) -> bool:
    """End a pause. Return False when there was none."""
    deletion = delete(Pause).where(Pause.scope == scope, Pause.name == name)
    if execute_and_count(session, deletion) != 1:
        return False
    audit.record(session, actor=actor, action=f"{scope}.resume", target=name)
    return True


def all_pauses(session: Session) -> Sequence[Pause]:
    return session.scalars(select(Pause).order_by(Pause.scope, Pause.name)).all()


def current_pauses(session: Session) -> Paused:
    names: dict[Scope, set[str]] = {}
    for scope, name in session.execute(_NAMES):
        names.setdefault(Scope(scope), set()).add(name)
    some_jobs = names.pop(Scope.JOB, None) is not None
    return Paused({scope: frozenset(members) for scope, members in names.items()}, some_jobs)


def paused_jobs(session: Session, job_ids: Collection[str]) -> set[str]:
    """Return which of these jobs are paused by themselves."""
    return set(session.scalars(select(Pause.name).where(Pause.scope == Scope.JOB, Pause.name.in_(job_ids))))


def refuses(session: Session, task: Task, job: Job, n: int, worker_id: str, queue: str | None = None) -> bool:
    """Return whether a claim must be refused. If so, its message is published again when no pause holds it back.

    `queue` is a shard's, where it is not its job's.
    """
    off = current_pauses(session)
    worker_is_paused = worker_id in off.of(Scope.WORKER)
    if task is Task.RUN:
        paused_itself = off.some_jobs and bool(paused_jobs(session, [job.id]))
        stopped = (
            off.stops(queue or job.queue, job.model, job.project_id, job.serves_as) or worker_is_paused or paused_itself
        )
    else:
        stopped = off.holds_finishing(worker_id)
    if not stopped:
        return False
    outbox.unpublish(session, task, job.id, n, delay=_ELSEWHERE_SECONDS if worker_is_paused else 0.0)
    return True


def forget_job(session: Session, job_id: str) -> None:
    """Remove the pause of a job that has ended."""
    session.execute(delete(Pause).where(Pause.scope == Scope.JOB, Pause.name == job_id))


def forget_worker(session: Session, worker_id: str) -> None:
    """Delete the pause of a worker that has ended: no worker gets its name again."""
    session.execute(delete(Pause).where(Pause.scope == Scope.WORKER, Pause.name == worker_id))
