"""Steer the deployment: show its workers, pauses and quarantines, pause and resume, and say what still runs.

A model is paused together with its aliases. Objects are named as an operator names them: a project by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from jobs.db.base import row_of
from jobs.errors import NotFound
from jobs.fleet import quarantine, workers
from jobs.fleet.models_file import ANY_MODEL, Registry
from jobs.fleet.tables import Model, Pause
from jobs.ledger import pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.security import keys
from jobs.security.tables import Project

#: What an operator can pause.
Kind = Literal["queue", "model", "project", "worker"]

_SHOWN: Final = 20  # names in an error


@dataclass(frozen=True, slots=True)
class Change:
    """The result of a pause or its end. `names` are the stored names that `name` stands for; `freed`: quarantines."""

    names: list[str]
    changed: bool
    freed: int = 0


def live_workers(session: Session) -> list[dict[str, Any]]:
    """Return every registered worker with its claims and its other work."""
    off = pauses.current_pauses(session).of(Scope.WORKER)
    return [
        {
            "id": worker.id,
            "pool": worker.pool,
            "host": worker.host,
            "pid": worker.pid,
            "state": "paused" if worker.id in off else worker.state,
            "loading": [asdict(loading) for loading in workers.loads(worker)],
            "queues": worker.queues,
            "models": worker.models,
            "running": workers.claims_at(session, Scope.WORKER, worker.id),
            "other_work": workers.other_work_at(session, Scope.WORKER, worker.id),
            "slots": worker.slots,
            "engine_restarts": worker.restarts,
        }
        for worker in workers.all_workers(session)
    ]


def describe_pauses(session: Session, aliases: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what is paused. The entry of a model includes its aliases, which are paused with it."""
    names = pauses.current_pauses(session).of(Scope.MODEL)
    folded = {alias: model for alias, model in aliases.items() if {alias, model} <= names}
    entries: list[dict[str, Any]] = []
    for row in pauses.all_pauses(session):
        is_model = row.scope == Scope.MODEL
        if is_model and row.name in folded:
            continue
        entry = {"kind": row.scope, "name": _display_name(session, row), "reason": row.reason}
        also = sorted(alias for alias, model in folded.items() if model == row.name)
        entries.append(entry | {"aliases": also} if is_model else entry)
    return entries


def _display_name(session: Session, row: Pause) -> str:
    """Return the name of a project, and any other name unchanged."""
    project = session.get(Project, row.name) if row.scope == Scope.PROJECT else None
    return project.name if project else row.name


def describe_quarantines(session: Session) -> list[dict[str, Any]]:
    """Return the quarantined engines, with their last log lines and a description of several lines."""
    return [
        row_of(row) | {"description": "\n".join(quarantine.describe(row))}
        for row in quarantine.all_quarantines(session)
    ]


def pause(session: Session, registry: Callable[[], Registry], kind: Kind, name: str, *, actor: str) -> Change:
    """Start no new work there. Running work goes on, and jobs are still accepted. Raises NotFound."""
    scope = Scope(kind)
    names = names_of(session, registry, scope, name)
    changed = [pauses.pause(session, scope, target, actor=actor) for target in names]
    return Change(names, any(changed))


def resume(session: Session, registry: Callable[[], Registry], kind: Kind, name: str, *, actor: str) -> Change:
    """Start work again; end the quarantines of a model. Raises NotFound."""
    scope = Scope(kind)
    names = names_of(session, registry, scope, name)
    changed = [pauses.resume(session, scope, target, actor=actor) for target in names]
    models = names if scope is Scope.MODEL else []
    freed = sum(quarantine.release(session, target, actor) for target in models)
    return Change(names, any(changed) or freed > 0, freed)


def remaining(session: Session, registry: Callable[[], Registry], kind: Kind, name: str) -> dict[str, Any]:
    """Return the claims and the other work that still run there, and the heartbeats of the workers concerned.

    Nothing runs any more when both counts are 0 and each of these workers, if it is still there, has sent
    `jobs.fleet.workers.HEARTBEATS_TO_ACKNOWLEDGE` heartbeats since the pause. Raises NotFound.
    """
    scope = Scope(kind)
    names = names_of(session, registry, scope, name)
    return {
        "running": sum(workers.claims_at(session, scope, target) for target in names),
        "other_work": sum(workers.other_work_at(session, scope, target) for target in names),
        "heartbeats": workers.heartbeats(session, scope, set(names)),
    }


def names_of(session: Session, registry: Callable[[], Registry], scope: Scope, name: str) -> list[str]:
    """Return the stored names that `name` stands for: the id of a project, or a model and its aliases.

    `registry` reads the models file, which may be invalid: it is called only where it is needed. Raises NotFound.
    """
    if scope is Scope.PROJECT:
        project = keys.find_project(session, name)
        if project is None:
            raise NotFound(f"There is no project '{name}'; `nightmill keys list` shows them.", param="name")
        return [project.id]
    if scope is Scope.MODEL:
        return _models(session, registry(), name)
    fleet = workers.all_workers(session)
    known = {worker.id for worker in fleet}
    if scope is Scope.QUEUE:
        known = {*map(str, Queue), *(queue for worker in fleet for queue in worker.queues)}
        known |= pauses.current_pauses(session).of(scope)
        if name not in known:
            known |= {model.queue for model in registry().models.values()}
    if name not in known:
        listed = ", ".join(sorted(known)[:_SHOWN]) or "none"
        raise NotFound(f"There is no {scope} '{name}'; there are {listed}.", param="name")
    return [name]


def _models(session: Session, registry: Registry, name: str) -> list[str]:
    """Return a model and its aliases, found by one of these names. Raises NotFound for an unknown name."""
    shown, known = _model_uses(session, name)
    model = name if name in registry.models or shown else registry.aliases.get(name, name)
    if model == name and not (name in registry.models or shown or known):
        raise NotFound(f"There is no model '{name}'; `nightmill models list` shows them.", param="name")
    return [model, *(alias for alias, target in registry.aliases.items() if target == model)]


def _model_uses(session: Session, name: str) -> tuple[bool, bool]:
    """Return whether an endpoint listed a model, and whether a job, worker, pause or quarantine has its name."""
    served = {model for worker in workers.all_workers(session) for model in worker.models}
    is_paused = name in pauses.current_pauses(session).of(Scope.MODEL)
    of_job = select(Job.id).where(Job.state.in_(LIVE), or_(Job.model == name, Job.serves_as == name)).limit(1)
    is_used = session.scalar(of_job) is not None
    known = (
        is_used
        or is_paused
        or not served.isdisjoint({name, ANY_MODEL})
        or bool(quarantine.all_quarantines(session, name))
    )
    return session.get(Model, name) is not None, known
