"""The workers that are alive, and the models that endpoints have shown.

A worker registers, then sends heartbeats; the leading dispatcher removes those whose heartbeat stands still on its own
clock. A row that is here is therefore a worker that lives, give or take one lease.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, delete, exists, func, literal, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import row_of
from jobs.db.engine import execute_and_count, insert_into
from jobs.fleet.models_file import ANY_MODEL, Registry
from jobs.fleet.tables import Model, Pause, Worker
from jobs.ledger import measures, outbox, pauses
from jobs.ledger.outbox import Served
from jobs.ledger.states import LIVE, ShardState
from jobs.ledger.tables import Job, Shard
from jobs.queues import Queue
from jobs.webhooks.tables import Delivery

HEARTBEATS_TO_ACKNOWLEDGE = 3  # see `Acknowledgement`
_OFF = exists().where(Pause.scope == pauses.Scope.WORKER, Pause.name == Worker.id)
#: The query of the dispatcher while work waits, built once.
_ALIVE = select(Worker).where(Worker.state == "ready", ~_OFF).order_by(Worker.id)
_RESTARTS = select(Worker.pool, Worker.restarts).where(Worker.id == bindparam("its_id")).with_for_update()
_STARTING = "starting its worker"
_PRESENT = select(Worker).where(Worker.state != "stopping", ~_OFF).order_by(Worker.id)
#: The query of `serves`, built once.
_SERVING = select(Worker.queues, Worker.models).where(Worker.state == "ready", ~_OFF)


def register(session: Session, worker: Worker) -> None:
    """Insert or replace the worker's row: the answer may be lost, and two threads may find the row missing."""
    row = row_of(worker)
    insert = insert_into(session, Worker).values(row)
    session.execute(insert.on_conflict_do_update(index_elements=[Worker.id], set_=row))


def heartbeat(session: Session, worker_id: str, *, heartbeats: int = 1, **changes: Any) -> bool:
    """Record a heartbeat, or with 0 `heartbeats` only changed columns.

    Return False when the row is gone, because the dispatcher took the worker for dead. The growth of `restarts` is also
    counted in `jobs.ledger.measures`, which outlives the worker's row.
    """
    if restarts := changes.get("restarts"):
        known = session.execute(_RESTARTS, {"its_id": worker_id}).first()
        if known is not None and restarts > known.restarts:
            measures.count(session, measures.RESTARTS, known.pool, restarts - known.restarts)
    change = (
        update(Worker)
        .where(Worker.id == worker_id)
        .values(heartbeat=Worker.heartbeat + heartbeats, seen_at=now(), **changes)
    )
    return execute_and_count(session, change) == 1


def leave(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))
    pauses.forget_worker(session, worker_id)


def all_workers(session: Session) -> Sequence[Worker]:
    return session.scalars(select(Worker).order_by(Worker.pool, Worker.id)).all()


def alive(session: Session, queue: str | None = None) -> Sequence[Worker]:
    """Workers that can take work now, of one queue or all."""
    return [worker for worker in session.scalars(_ALIVE) if queue is None or queue in worker.queues]


def slots(workers: Iterable[Worker]) -> dict[str, int]:
    """Slots per queue, of workers that are alive."""
    total: dict[str, int] = {}
    for worker in workers:
        for queue in worker.queues:
            total[queue] = total.get(queue, 0) + worker.slots
    return total


def serves(session: Session, queue: str, model: str) -> bool:
    """Return whether a live worker of `queue` serves `model`."""
    return any(
        queue in queues and (model in models or ANY_MODEL in models) for queues, models in session.execute(_SERVING)
    )


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that a worker is loading, and the phase. `model` is empty while the process itself is starting."""

    model: str
    phase: str
    since: float


def present(session: Session) -> Sequence[Worker]:
    """Return the workers that take work now or will once their engines are loaded."""
    return session.scalars(_PRESENT).all()


def loads(worker: Worker) -> list[Loading]:
    """Return the engines that `worker` is loading, the longest first."""
    held = {name: how for name, how in (worker.engines or {}).items() if not how["up"]}
    engines = [
        Loading(name, how.get("phase") or _STARTING, how.get("since", worker.created_at)) for name, how in held.items()
    ]
    if not engines and worker.state == "starting":
        engines = [Loading("", _STARTING, worker.created_at)]
    return sorted(engines, key=lambda engine: engine.since)


def loading(workers: Iterable[Worker], queue: str, model: str) -> Loading | None:
    """Return what `workers` are loading that keeps `model` from being answered; None where nothing does.

    `model` is no alias. A worker that starts answers its other models too only when all its engines are loaded.
    """
    here = [worker for worker in workers if queue in worker.queues]
    engines = [
        engine for worker in here for engine in loads(worker) if engine.model == model or worker.state == "starting"
    ]
    if not engines or any(_answers(worker, model) for worker in here):
        return None
    return min(engines, key=lambda engine: (engine.model != model, engine.since))


def _answers(worker: Worker, model: str) -> bool:
    is_up = (worker.engines or {}).get(model, {"up": True})["up"]
    return worker.state == "ready" and is_up and (model in worker.models or ANY_MODEL in worker.models)


def served_models(workers: Iterable[Worker], registry: Registry | None) -> dict[str, Served]:
    """Return the models that the live workers of each queue answer, by the rules of `workers.engines.router.Router`.

    Without a `registry` every model counts as answered. An endpoint that takes any name does not answer the names that
    the models file gives to other engines.
    """
    shown: dict[str, set[str]] = {}
    for worker in workers:
        for queue in worker.queues:
            shown.setdefault(queue, set()).update(worker.models)
    if registry is None:
        return dict.fromkeys(shown, outbox.ALL)
    return {queue: _to_served(names, registry) for queue, names in shown.items()}


def is_unserved(served_models: Mapping[str, Served]) -> ColumnElement[bool]:
    """Return the condition that no worker of a job's queue answers the job's model, if the job has one."""
    queue, model = func.coalesce(Job.queue, ""), outbox.NEEDED_MODEL
    others = (and_(queue == name, model.is_not(None), ~its.among(model)) for name, its in served_models.items())
    return or_(queue.not_in(list(served_models)), *others)


def _to_served(shown: set[str], registry: Registry) -> Served:
    aliases = registry.aliases.items()
    if ANY_MODEL not in shown:
        return Served(frozenset(shown.union(alias for alias, name in aliases if name in shown)))
    others = registry.models.keys() - shown
    return Served(frozenset(others.union(alias for alias, name in aliases if name in others) - shown), but=True)


def store_models(session: Session, models: Mapping[str, bool], queue: str) -> None:
    """Store the models that endpoints serve: name → whether the endpoint is external.

    A stored model stays known while its endpoint is unavailable.
    """
    seen = now()
    for name in sorted(models):  # in one order: several workers may do this at once
        model = {"id": name, "queue": queue, "owned_by": "endpoint", "created_at": seen}
        fresh = {"external": models[name], "seen_at": seen}
        insert = insert_into(session, Model).values(model | fresh)
        session.execute(insert.on_conflict_do_update(index_elements=[Model.id], set_=fresh))


def claims_at(session: Session, scope: pauses.Scope, name: str) -> int:
    """Return the number of held claims on shards and jobs of the queue, model, project, worker or job `name`."""
    of_shards = {
        pauses.Scope.QUEUE: func.coalesce(Shard.queue, Job.queue),
        pauses.Scope.MODEL: Job.model,
        pauses.Scope.PROJECT: Job.project_id,
        pauses.Scope.WORKER: Shard.worker_id,
        pauses.Scope.JOB: Job.id,
    }
    here = of_shards[scope] == name
    if scope is pauses.Scope.MODEL:
        here = or_(here, Job.serves_as == name)
    held = select(func.count()).select_from(Shard).join(Job, Job.id == Shard.job_id)
    count = session.scalar(held.where(Shard.state == ShardState.RUNNING, here)) or 0
    jobs = select(func.count()).select_from(Job).where(Job.state.in_(LIVE), Job.worker_id.is_not(None))
    if scope is pauses.Scope.WORKER:
        count += session.scalar(jobs.where(Job.worker_id == name)) or 0
    elif scope is pauses.Scope.QUEUE and name == Queue.PLAN:
        count += session.scalar(jobs) or 0
    return count


def claims_by_project(session: Session) -> dict[str, dict[str, int]]:
    """Return the number of held claims by queue and project. A job that another pool finishes is none of planning."""
    claims: dict[str, dict[str, int]] = {}
    queue = func.coalesce(Shard.queue, Job.queue, "")
    running = select(queue, Job.project_id, func.count()).join(Shard, Shard.job_id == Job.id)
    running = running.where(Shard.state == ShardState.RUNNING).group_by(queue, Job.project_id)
    others = [worker.id for worker in all_workers(session) if Queue.PLAN not in worker.queues]
    jobs = select(literal(Queue.PLAN.value), Job.project_id, func.count()).group_by(Job.project_id)
    jobs = jobs.where(Job.state.in_(LIVE), Job.worker_id.is_not(None), Job.worker_id.not_in(others))
    for statement in (running, jobs):
        for name, project, count in session.execute(statement):
            projects = claims.setdefault(name, {})
            projects[project] = projects.get(project, 0) + count
    return claims


def other_work_at(session: Session, scope: pauses.Scope, name: str) -> int:
    """Return the amount of other work of `name`, read as `scope`: interactive requests, removals, deliveries.

    Deliveries count for a queue and a worker only: the events of a paused model or project are still delivered.
    """
    if scope is pauses.Scope.JOB:
        return 0
    fields = {pauses.Scope.QUEUE: 0, pauses.Scope.MODEL: 1, pauses.Scope.PROJECT: 2}
    count = 0
    for worker_id, work in session.execute(select(Worker.id, Worker.other_work)):
        count += sum(
            int(entry[3])
            for entry in work or ()
            if (worker_id if scope is pauses.Scope.WORKER else entry[fields[scope]]) == name
        )
    sent = select(func.count()).select_from(Delivery).where(Delivery.worker_id.is_not(None))
    if scope is pauses.Scope.WORKER:
        count += session.scalar(sent.where(Delivery.worker_id == name)) or 0
    elif scope is pauses.Scope.QUEUE and name == Queue.WEBHOOKS:
        count += session.scalar(sent) or 0
    return count


def heartbeats(session: Session, scope: pauses.Scope, names: Set[str]) -> dict[str, int]:
    """Return the heartbeats of the workers that a pause of these names concerns, by the ids of the workers."""

    def is_concerned(worker: Worker) -> bool:
        if scope is pauses.Scope.WORKER:
            return worker.id in names
        return scope is not pauses.Scope.QUEUE or not names.isdisjoint(worker.queues)

    return {worker.id: worker.heartbeat for worker in all_workers(session) if is_concerned(worker)}


class Acknowledgement:
    """The workers that may not have read a pause yet, or not have reported their work since.

    The next heartbeat may have been under way when the pause was written. The second heartbeat reads the pause, and
    the third reports the work that was begun before it.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def pending_workers(self, heartbeats: Mapping[str, int]) -> list[str]:
        """Return the ids of these workers, by their heartbeats since the first call, which must follow the pause."""
        for name, count in heartbeats.items():
            self._seen[name] = min(self._seen.get(name, count), count)
        return [name for name, count in heartbeats.items() if count < self._seen[name] + HEARTBEATS_TO_ACKNOWLEDGE]
