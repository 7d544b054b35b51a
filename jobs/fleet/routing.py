"""Find the queue of a model's name, or the reason why it has none.

configured name ─▶ name that an endpoint showed ─▶ tuned model ─▶ alias ─▶ an endpoint that takes any name

Aliases are those of the models file; `jobs.fleet.access` has put the model of a project's own alias in its place.
An adapter is served where its base is, a tuned model with weights of its own by the process `tuned`. Whether a project
may ask is decided by `jobs.fleet.access`, the only caller of `route`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.fleet import workers as fleet
from jobs.fleet.models_file import ANY_MODEL, GENERATION, VLLM_OFF, EngineKind, Registry
from jobs.fleet.tables import Model
from jobs.ledger import pauses
from jobs.queues import Queue
from jobs.registry import models as tuned_models
from jobs.registry.tables import TunedModel
from jobs.security import model_permissions
from jobs.security.tables import Project
from jobs.settings import Settings

_NAMED: Final = 10  # models in a message


class NotServed(Exception):
    """No worker will serve this model for this project. `others` is a sentence that names the available models."""

    def __init__(self, message: str, code: str = "model_not_found", others: str = "") -> None:
        super().__init__(message)
        self.code, self.others = code, others


class NotYet(Exception):
    """An endpoint that may serve the model has not answered yet."""


class Route(NamedTuple):
    """The queue whose workers serve a model.

    `model` is the name that they are asked for: the target where a project asked for its alias. For an adapter
    `serves_as` is the base that they must have. `is_external` says that only servers outside this deployment have the
    model. `fallbacks` are those of the alias that come after the model.
    """

    queue: str
    model: str
    serves_as: str | None = None
    is_external: bool = False
    fallbacks: tuple[str, ...] = ()


def route(
    session: Session, config: Settings, registry: Registry, name: str, *, endpoint: str, project_id: str
) -> Route:
    """Return which workers serve `name` at `endpoint`. Raises NotServed, NotYet."""
    known = name in registry.models or not tuned_models.is_tuned(name) or session.get(Model, name) is not None
    tuned = None if known else _find_tuned_model(session, registry, name, project_id)
    if tuned is not None and tuned.method == tuned_models.FULL:
        base_model = registry.models.get(tuned.base)
        _check_serves(name, base_model.endpoints if base_model else GENERATION, endpoint)
        return Route(Queue.TUNED, name)
    base = None if tuned is None else tuned.base
    queue, is_external = _queue(session, config, registry, base or name, endpoint, project_id)
    return Route(queue, name, base, is_external)


def names_with_models(session: Session, registry: Registry, names: Collection[str], project_id: str) -> set[str]:
    """Return those of `names` that models have, served or not, tuned ones if the project may ask for them."""
    configured = {name for name in names if name in registry.models or name in registry.trainable}
    shown = session.scalars(select(Model.id).where(Model.id.in_(names)))
    return {*configured, *shown, *tuned_models.names_with_models(session, names, project_id)}


def model_of(queue: str, name: str) -> str:
    """Return the model that a worker of `queue` must have to answer for `name`: for an adapter its base."""
    return name if queue == Queue.TUNED else tuned_models.base_model_of(name)


def is_paused(session: Session, queue: str, name: str, project_id: str) -> bool:
    """Return whether the operator has paused `queue`, the model of this name, or the project."""
    return pauses.current_pauses(session).stops(queue, name, project_id, model_of(queue, name))


def is_served(session: Session, registry: Registry, queue: str, name: str) -> bool:
    """Return whether a live worker of `queue` has the model of this name, of its alias, or the base of its adapter."""
    names = name, registry.aliases.get(name, ""), tuned_models.base_model_of(name)
    return any(fleet.serves(session, queue, served) for served in names if served)


def _queue(
    session: Session, config: Settings, registry: Registry, name: str, endpoint: str, project_id: str
) -> tuple[str, bool]:
    """Return the queue of a model, and whether the model is external."""
    configured = registry.models.get(name)
    if configured is None and (shown := session.get(Model, name)) is not None:
        return shown.queue, shown.external
    configured = configured or registry.models.get(registry.aliases.get(name, ""))
    if configured is None:
        return _wildcard(session, config, registry, name, endpoint, project_id)
    _check_serves(name, configured.endpoints, endpoint)
    return configured.queue, configured.external


def _check_serves(name: str, endpoints: Collection[str], endpoint: str) -> None:
    if endpoint not in endpoints:
        raise NotServed(f"The model '{quote(name)}' does not serve {endpoint}.", "model_not_supported")


def engines(session: Session, registry: Registry) -> dict[str, str]:
    """Return the engine kind of each name in the models file, except aliases that an endpoint has as a name."""
    names = {name: name for name in registry.models} | live_aliases(session, registry)
    return {name: registry.models[target].engine.value for name, target in names.items() if target in registry.models}


def live_aliases(session: Session, registry: Registry) -> dict[str, str]:
    """Return the model of each alias, except aliases that an endpoint has as a name."""
    aliases = {alias: model.name for model in registry.unserved.values() for alias in model.aliases}
    aliases |= registry.aliases
    shown = set(session.scalars(select(Model.id).where(Model.id.in_(aliases))))
    return {alias: name for alias, name in aliases.items() if alias not in shown}


def permission_of(session: Session, registry: Registry, project_id: str) -> Callable[[str], bool]:
    """Return a function that tells of a name whether the project may use its model."""
    rule = model_permissions.rule_of(session, project_id)
    aliases = live_aliases(session, registry) if rule.mode else {}
    return lambda name: rule.permits(names_of_model(name, aliases))


def target_of(name: str, aliases: Mapping[str, str]) -> str:
    """Return the model that answers for `name`: that of an alias, and the base of a tuned model."""
    base = tuned_models.base_model_of(name)
    return aliases.get(base, base)


def names_of_model(name: str, aliases: Mapping[str, str]) -> set[str]:
    """Return all names of the model that answers for `name`, and those of the base of a tuned model."""
    base, target = tuned_models.base_model_of(name), target_of(name, aliases)
    return {name, base, target, *(alias for alias, model in aliases.items() if model == target)}


def describe_models(names: Sequence[str], endpoint: str = "") -> str:
    """Return a sentence with the `names` of available models."""
    serve = f" that serve {endpoint}" if endpoint else ""
    few = ", ".join(f"`{name}`" for name in names[:_NAMED]) or "none"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"The models{serve} here: {few}{more}."


def names_of(session: Session, registry: Registry, endpoint: str | None, project_id: str) -> list[str]:
    """Return the models that a project may use, at `endpoint` if one is given, without their aliases."""
    shown = session.execute(select(Model.id, Model.external).where(Model.id != ANY_MODEL).order_by(Model.id))
    models_shown = {name: external for name, external in shown}  # noqa: C416 (rows are not pairs to a type checker)
    models_shown |= {model.name: model.external for model in registry.models.values()}
    allowed = session.get_one(Project, project_id).allow_external
    is_permitted = permission_of(session, registry, project_id)
    models = registry.models
    return [
        name
        for name, external in models_shown.items()
        if (allowed or not external)
        and (endpoint is None or name not in models or endpoint in models[name].endpoints)
        and is_permitted(name)
    ]


def _find_tuned_model(session: Session, registry: Registry, name: str, project_id: str) -> TunedModel | None:
    """Return a tuned model; None for a name that the project may not ask for, as for an unknown one."""
    model = tuned_models.find_any(session, name, project_id)
    if model is not None and model.state == tuned_models.FAILED_PROBE:
        reason = tuned_models.probe_of(model).reason
        raise NotServed(f"The model '{quote(name)}' failed its probe and is not served: {reason}", "failed_probe")
    if model is not None and model.state == tuned_models.DELETED:
        raise NotServed(f"The model '{quote(name)}' was deleted.")
    base = None if model is None or model.method == tuned_models.FULL else registry.models.get(model.base)
    if model is not None and model.method != tuned_models.FULL and model.base in registry.unserved:
        raise NotServed(f"The model '{quote(name)}' is not served: {VLLM_OFF}", "model_not_supported")
    if base is not None and base.engine is EngineKind.VLLM and not base.engine_args.get("enable_lora"):
        message = f"The model '{quote(name)}' needs `enable_lora: true` in the engine_args of '{base.name}'."
        raise NotServed(message, "model_not_supported")
    return model


def _wildcard(
    session: Session, config: Settings, registry: Registry, name: str, endpoint: str, project_id: str
) -> tuple[str, bool]:
    workers = fleet.alive(session, Queue.GENERATE)
    if any(ANY_MODEL in worker.models for worker in workers):
        taker = session.get(Model, ANY_MODEL)  # recorded by workers for endpoints that take any name
        return Queue.GENERATE, taker is not None and taker.external
    if config.engine_urls and not any(worker.models for worker in workers):
        raise NotYet(name)
    raise unknown_model(session, registry, name, endpoint, project_id)


def unknown_model(session: Session, registry: Registry, name: str, endpoint: str, project_id: str) -> NotServed:
    """Return the refusal of a model that does not exist for the project."""
    others = describe_models(names_of(session, registry, endpoint, project_id), endpoint)
    return NotServed(f"The provided model '{quote(name)}' is not supported by the Batch API. {others}", others=others)
