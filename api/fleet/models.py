"""Models: those of the models file with their aliases, those that endpoints have shown, and tuned ones."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import select

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import resource
from jobs.errors import NotFound, PermissionDenied
from jobs.finetuning import names
from jobs.fleet import checkpoint, routing, serving
from jobs.fleet.models_file import Model as Configured
from jobs.fleet.tables import Model as Shown
from jobs.registry import models as tuned_models
from jobs.requests.endpoints import EMBEDDINGS
from jobs.security.tables import Project

router: APIRouter = resource("Models")


class ModelServing(BaseModel):
    """The serving of a model: whether it is served now, by how many live workers of which queue, and if not, why.

    `model` is the model whose engine answers: that of an alias, and the base of a tuned model.
    """

    model: str
    state: Literal["ready", "paused", "loading", "quarantined", "unreachable", "no_worker"]
    queue: str
    workers: int
    reason: str | None = None
    loading_since: int | None = None


class Model(BaseModel):
    """A model with OpenAI's fields. The others are known only for embedding models, and not for all.

    `max_model_len` counts tokens. The cost is the price of a million tokens at the model's server. `serving` is there
    with `include=serving`.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int | None = None
    license: str | None = None
    training_data: list[str] | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    cost_per_million_tokens: float | None = None
    serving: ModelServing | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: bool


@router.get("/models", response_model_exclude_none=True)
def list_models(
    call: Call,
    include: Annotated[
        Literal["serving"] | None, Query(description="`serving`: where each model is served, and why not.")
    ] = None,
) -> ModelList:
    """List all names that a request may use."""
    models = _models(call)
    if include:
        models = _with_serving(call, models)
    return ModelList(data=list(models.values()))


@router.get("/models/{model:path}", response_model_exclude_none=True)
def retrieve_model(call: Call, model: str) -> Model:
    """Return one model."""
    return _get(call, model)


@router.delete("/models/{model:path}")
def delete_model(call: Call, model: str) -> ModelDeleted:
    """Delete a tuned model of the project, or a checkpoint. The deployment's own models stay."""
    with call.db.write() as session:
        tuned = tuned_models.delete(session, model, call.project_id)
        if tuned is not None:
            call.record(session, "model.delete", tuned.id, {"name": tuned.name})
            return ModelDeleted(id=tuned.name, deleted=True)
    name = _get(call, model).id
    message = f"The model '{name}' belongs to this deployment and cannot be deleted."
    raise PermissionDenied(message, code="model_not_deletable")


def _get(call: CallContext, name: str) -> Model:
    models, aliases = _models(call), call.services.registry().aliases
    if name not in models:
        names = [model for model in models if model not in aliases]
        message = f"The model '{clip(name)}' does not exist. {routing.listed(names)}"
        raise NotFound(message, param="model", code="model_not_found")
    return models[name]


def _shown(model: Configured, created: int) -> Model:
    shown = Model(id=model.name, created=created, owned_by=model.owned_by)
    if EMBEDDINGS not in model.endpoints:
        return shown
    card = checkpoint.facts_of(model)
    known = {
        "max_model_len": card.max_model_len,
        "license": card.license,
        "training_data": None if card.training_data is None else list(card.training_data),
        "query_prompt": card.prompts.query or None,
        "passage_prompt": card.prompts.passage or None,
        "cost_per_million_tokens": model.cost_per_million_tokens,
    }
    return shown.model_copy(update=known)


def _with_serving(call: CallContext, models: dict[str, Model]) -> dict[str, Model]:
    """Return the models with where they are served. An alias is served as its model."""
    registry = call.services.registry()
    needed = {
        name: serving.Needed(name, model.queue, model.engine == "http") for name, model in registry.models.items()
    }
    with call.db.read() as session:
        for row in session.scalars(select(Shown)):
            needed.setdefault(row.id, serving.Needed(row.id, row.queue, is_http=True))
        states = serving.states(session, needed.values())
        bases = {tuned.name: tuned.base for tuned in tuned_models.of_project(session, call.project_id)}
    targets = {name: registry.aliases.get(bases.get(name, name), bases.get(name, name)) for name in models}
    return {
        name: model.model_copy(update={"serving": _serving(targets[name], states[targets[name]])})
        if targets[name] in states
        else model
        for name, model in models.items()
    }


def _serving(model: str, known: serving.Serving) -> ModelServing:
    since = int(known.loading.since) if known.loading else None
    return ModelServing(
        model=model,
        state=known.state,
        queue=known.queue,
        workers=known.workers,
        reason=serving.why_not(known),
        loading_since=since,
    )


def _models(call: CallContext) -> dict[str, Model]:
    registry = call.services.registry()
    created = int(registry.stamp[0] / 1e9)
    models = {name: _shown(model, created) for name, model in registry.models.items()}
    for alias, name in registry.aliases.items():
        models[alias] = models[name].model_copy(update={"id": alias})
    with call.db.read() as session:
        for row in session.scalars(select(Shown).order_by(Shown.id)):
            models.setdefault(row.id, Model(id=row.id, created=int(row.created_at), owned_by=row.owned_by))
        for tuned in tuned_models.of_project(session, call.project_id):
            owner = names.slug(session.get_one(Project, tuned.project_id).name)
            models[tuned.name] = Model(id=tuned.name, created=int(tuned.created_at), owned_by=owner)
    return models
