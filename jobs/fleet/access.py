"""Resolve a piece of work: whether its key and its project may have it done, and which workers do it.

    drawn from the models of the project's alias ─▶ key may, in this project ─▶ project not archived
        ─▶ model permitted ─▶ `routing.route` ─▶ external models allowed ─▶ served, else a fallback of the alias

Every request, line, job, schedule and grader that asks a model comes through here: when it is accepted, when it is
planned, and when a worker claims it. A model that is not permitted is refused as one that does not exist. All that
follows, permissions, limits, prices and usage, is that of the model that was drawn for an alias: `Route.model`.
"""

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.errors import InvalidRequest
from jobs.fleet import routing
from jobs.fleet.models_file import ANY_MODEL, Registry
from jobs.fleet.routing import NotServed, NotYet, Route
from jobs.fleet.tables import Model
from jobs.ledger import kinds
from jobs.ledger.tables import Job
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting
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
    `subject` is whose work it is, by whom a sticky alias draws; other draws for a `job_id` are the same each time.
    `fallbacks` are those of the alias that `model` was drawn from; None where `model` may be an alias.
    """

    project_id: str
    key_id: str | None
    model: str
    endpoint: str
    permission: str | None = None
    subject: str | None = None
    job_id: str | None = None
    fallbacks: tuple[str, ...] | None = None


def work_of(job: Job, model: str, endpoint: str) -> Work:
    """Return the piece of work in which a job asks a model. Its key needs the permission that made the job."""
    permission = "api.schedules.write" if job.schedule_id else kinds.of(job.kind).permission
    return Work(job.project_id, job.key_id, model, endpoint, permission, job_id=job.id)


def resolve(session: Session, config: Settings, registry: Registry, work: Work) -> Route:
    """Return which workers do the work: those of its model, or of the first fallback that is served where it is not.

    Raises AccessDenied, NotServed, NotYet.
    """
    if work.fallbacks is None:
        work = draw(work, routing_of_alias(session, registry, work.model, work.project_id))
    routes = []
    models = (work.model, *work.fallbacks) if work.fallbacks else ()
    for index, model in enumerate(models, 1):
        with suppress(NotServed, NotYet):
            route = _route(session, config, registry, replace(work, model=model))._replace(fallbacks=models[index:])
            routes.append(route)
            if routing.is_served(session, registry, route.queue, model):
                return route
    return routes[0] if routes else _route(session, config, registry, work)


def draw(work: Work, alias: AliasRouting | None) -> Work:
    """Return the work with the model that answers it, drawn from those of the alias that it names, if it names one."""
    if alias is None:
        return replace(work, subject=None, job_id=None, fallbacks=())
    by = (work.subject if alias.sticky else None) or work.job_id
    point = random.random() if by is None else aliases.point_of(work.project_id, work.model, by)  # noqa: S311
    model = alias.model_at(point)
    fallbacks = tuple(fallback for fallback in alias.fallbacks if fallback != model)
    return replace(work, model=model, subject=None, job_id=None, fallbacks=fallbacks)


def _route(session: Session, config: Settings, registry: Registry, work: Work) -> Route:
    """Return which workers have the model of the work. Raises AccessDenied, NotServed, NotYet."""
    check(session, registry, work)
    route = routing.route(session, config, registry, work.model, endpoint=work.endpoint, project_id=work.project_id)
    if route.is_external and not session.get_one(Project, work.project_id).allow_external:
        message = f"The model '{quote(work.model)}' runs outside this deployment, which the project does not allow."
        raise AccessDenied(message, "external_model_not_allowed")
    return route


def routing_of_alias(session: Session, registry: Registry, name: str, project_id: str) -> AliasRouting | None:
    """Return the routing of a project's alias; None where it has none of this name, and for a model's name.

    An alias comes before one of the models file, and before an endpoint that takes any name.
    """
    alias = None if name in registry.models else aliases.find(session, name, project_id)
    if alias is None or routing.names_with_models(session, registry, [name], project_id):
        return None
    return aliases.routing_of(alias)


def model_of_name(session: Session, registry: Registry, name: str, project_id: str) -> str:
    """Return the incumbent of a project's alias of this name; otherwise, and for a model's name, the name."""
    alias = routing_of_alias(session, registry, name, project_id)
    return name if alias is None else alias.incumbent


def models_by_alias(session: Session, registry: Registry, project_id: str) -> dict[str, str]:
    """Return the incumbent of each alias of a project, except aliases whose name a model has."""
    rows = aliases.aliases_of(session, project_id)
    taken = routing.names_with_models(session, registry, {alias.name for alias in rows}, project_id)
    return {alias.name: alias.model for alias in rows if alias.name not in taken}


def static_aliases(session: Session, registry: Registry, project_id: str) -> dict[str, str]:
    """Return the model of each alias of the models file that a project may ask for and that nothing comes before."""
    is_permitted = routing.permission_of(session, registry, project_id)
    own = {row.name for row in aliases.aliases_of(session, project_id)}
    live = routing.live_aliases(session, registry).keys() - own
    return {name: model for name, model in registry.aliases.items() if name in live and is_permitted(name)}


def check_alias(session: Session, registry: Registry, work: Work, models: Mapping[str, str]) -> None:
    """Check that an alias may stand for models, given with the parameter that names each.

    They exist, are no aliases, and the key and the project of `work` may ask them.

    Raises: InvalidRequest; AccessDenied for a key or a project that may ask nothing.
    """
    for model, param in models.items():
        try:
            check(session, registry, replace(work, model=model))
        except AccessDenied as denial:
            if denial.code in IDENTITY_CODES:
                raise
            raise _missing_model(session, registry, work.project_id, model, param) from None
        if routing.names_with_models(session, registry, [model], work.project_id):
            continue
        if model in registry.aliases or aliases.find(session, model, work.project_id) is not None:
            message = f"'{quote(model)}' is an alias: name the model for which it stands."
            raise InvalidRequest(message, param=param, code="alias_of_alias")
        if session.get(Model, ANY_MODEL) is None:  # else an endpoint takes any name
            raise _missing_model(session, registry, work.project_id, model, param)


def _missing_model(session: Session, registry: Registry, project_id: str, model: str, param: str) -> InvalidRequest:
    others = routing.describe_models(routing.names_of(session, registry, None, project_id))
    return InvalidRequest(f"The model '{quote(model)}' does not exist. {others}", param=param, code="model_not_found")


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
