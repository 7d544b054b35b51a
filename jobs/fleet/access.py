"""Resolve a piece of work: whether its key and its project may have it done, and which workers do it.

    model of the project's alias ─▶ key may, in this project ─▶ project not archived ─▶ model permitted
        ─▶ `routing.route` ─▶ external models allowed

Every request, line, job, schedule and grader that asks a model comes through here: when it is accepted, when it is
planned, and when a worker claims it. A model that is not permitted is refused as one that does not exist. All that
follows, permissions, limits, prices and usage, is that of the model for which an alias stands: `Route.model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.fleet import routing
from jobs.fleet.models_file import Registry
from jobs.fleet.routing import NotServed, Route
from jobs.ledger import kinds
from jobs.ledger.tables import Job
from jobs.registry import aliases
from jobs.registry.tables import Alias
from jobs.security.ended_keys import REFUSALS, find_refusal
from jobs.security.keys import ENDS
from jobs.security.tables import ApiKey, Project
from jobs.settings import Settings

#: The codes of the refusals of a key or a project, whatever the model.
IDENTITY_CODES: Final = frozenset(ENDS)


class AccessDenied(NotServed):
    """The key or the project may not have this work done, whoever serves the model."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work to be done: a `model` is asked at an `endpoint`. `key_id` is None where no key asked for it.

    `permission` is what the key, as it is now, must permit; None where the request that asks has been checked already.
    """

    project_id: str
    key_id: str | None
    model: str
    endpoint: str
    permission: str | None = None


def work_of(job: Job, model: str, endpoint: str) -> Work:
    """Return the piece of work in which a job asks a model. Its key needs the permission that made the job."""
    permission = "api.schedules.write" if job.schedule_id else kinds.of(job.kind).permission
    return Work(job.project_id, job.key_id, model, endpoint, permission)


def resolve(session: Session, config: Settings, registry: Registry, work: Work) -> Route:
    """Return which workers do the work. Raises AccessDenied, NotServed, NotYet."""
    work = replace(work, model=model_of_name(session, registry, work.model, work.project_id))
    check(session, registry, work)
    route = routing.route(session, config, registry, work.model, endpoint=work.endpoint, project_id=work.project_id)
    if route.is_external and not session.get_one(Project, work.project_id).allow_external:
        message = f"The model '{quote(work.model)}' runs outside this deployment, which the project does not allow."
        raise AccessDenied(message, "external_model_not_allowed")
    return route


def model_of_name(session: Session, registry: Registry, name: str, project_id: str) -> str:
    """Return the model for which a project's alias of this name stands; otherwise, and for a model's name, the name.

    An alias comes before one of the models file, and before an endpoint that takes any name.
    """
    alias = None if name in registry.models else aliases.find(session, name, project_id)
    return name if alias is None else _models_by_alias(session, registry, [alias]).get(name, name)


def models_by_alias(session: Session, registry: Registry, project_id: str) -> dict[str, str]:
    """Return the model of each alias of a project, except aliases whose name a model has."""
    return _models_by_alias(session, registry, aliases.aliases_of(session, project_id))


def _models_by_alias(session: Session, registry: Registry, rows: Sequence[Alias]) -> dict[str, str]:
    """Return the model of each of these aliases of one project, except aliases whose name a model has."""
    names = {alias.name for alias in rows}
    taken = routing.names_with_models(session, registry, names, rows[0].project_id) if rows else set()
    return {alias.name: alias.model for alias in rows if alias.name not in taken}


def check(session: Session, registry: Registry, work: Work) -> None:
    """Check the key, the project and the permission of the model. Raises AccessDenied."""
    _check_identity(session, work)
    if not routing.permission_of(session, registry, work.project_id)(work.model):
        refusal = routing.unknown_model(session, registry, work.model, work.endpoint, work.project_id)
        raise AccessDenied(str(refusal), refusal.code, refusal.others)


def _check_identity(session: Session, work: Work) -> None:
    """Raise AccessDenied for a key of another project, one that may not have this done, and an archived project."""
    code: str | None
    if work.key_id is None:
        archived_at = session.scalar(select(Project.archived_at).where(Project.id == work.project_id))
        code = None if archived_at is None else "project_archived"
    else:
        key = session.get(ApiKey, work.key_id)
        is_own = key is not None and key.project_id == work.project_id
        code = find_refusal(session, work.key_id, work.permission) if is_own else "key_revoked"
    if code is not None:
        raise AccessDenied(REFUSALS[code], code)
