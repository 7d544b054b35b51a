"""Models: those of the models file with their aliases, those that endpoints have shown, tuned ones, and aliases."""

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import resource
from jobs.errors import NotFound, PermissionDenied
from jobs.evals import runs
from jobs.evals.tables import EvalRun
from jobs.finetuning import datasets, names
from jobs.finetuning.tables import FinetunePlan
from jobs.fleet import access, checkpoint, routing, serving
from jobs.fleet.models_file import EngineKind
from jobs.fleet.models_file import ModelConfig as Configured
from jobs.fleet.tables import Model as Shown
from jobs.ledger.tables import Job
from jobs.registry import model_versions
from jobs.registry import models as tuned_models
from jobs.registry.tables import TunedModel
from jobs.requests.endpoints import EMBEDDINGS
from jobs.security.tables import Project

router: APIRouter = resource("Models", area="model")

_EVALUATIONS = 20  # of a model, the newest

ModelState = Literal["ready", "failed_probe", "deleted"]


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


class TrainingData(BaseModel):
    """A file that a model was trained by, and the SHA-256 of the rows that were read."""

    role: str
    file_id: str
    sha256: str | None
    rows: int | None


class ModelEvaluation(BaseModel):
    """A run that asked a model; its results once the run has ended."""

    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    name: str
    created_at: int
    per_testing_criteria_results: list[Any] | None = None


class ModelManifest(BaseModel):
    """The origin of a tuned model.

    `state` is `ready`, `deleted` or `failed_probe`, whose `probe_failure` says why. `parent` is the tuned model that
    the training went on from. An imported model has a `model_import` and no `fine_tuning_job`. `step` is the step whose
    weights these are. `run` describes the training: dtype, libraries, device, the weights of the base, forgetting, the
    spread of its probes. `files` are the SHA-256 by name. `evaluations` are the newest 20.
    """

    state: ModelState
    probe_failure: str | None = None
    probe_accepted: bool
    base: str
    parent: str | None = None
    fine_tuning_job: str | None
    model_import: str | None = None
    method: str
    step: int | None = None
    is_checkpoint: bool
    seed: int | None = None
    data: list[TrainingData]
    datasets: dict[str, str] = Field(default={}, description="The splits of datasets that the files were, by field.")
    data_erased: bool
    hyperparameters: dict[str, Any]
    training: dict[str, Any]
    run: dict[str, Any]
    sha256: str
    files: dict[str, str]
    evaluations: list[ModelEvaluation]


class Model(BaseModel):
    """A model with OpenAI's fields. The others are known only for embedding models, and not for all.

    `alias_of` is the model for which an alias of the project stands. `max_model_len` counts tokens. The cost is the
    price of a million tokens at the model's server. `serving` is there with `include=serving`. `manifest` is that of a
    tuned model, which the project that trained it gets of one model.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    alias_of: str | None = None
    max_model_len: int | None = None
    license: str | None = None
    training_data: list[str] | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    cost_per_million_tokens: float | None = None
    serving: ModelServing | None = None
    manifest: ModelManifest | None = None


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
        models = _add_serving(call, models)
    return ModelList(data=list(models.values()))


@router.get("/models/{model:path}", response_model_exclude_none=True)
def retrieve_model(call: Call, model: str) -> Model:
    """Return one model; a tuned one with its origin, also one that failed its probe."""
    with call.db.read() as session:
        tuned = tuned_models.find(session, model, call.project_id)
        is_permitted = routing.permission_of(session, call.services.registry(), call.project_id)
        if tuned is not None and tuned.project_id == call.project_id and is_permitted(model):
            return _show_tuned_model(session, tuned).model_copy(update={"manifest": manifest_of(session, tuned)})
    return _get(call, model)


@router.delete("/models/{model:path}")
def delete_model(call: Call, model: str) -> ModelDeleted:
    """Delete a tuned model of the project, or a checkpoint. The deployment's own models stay."""
    with call.db.write() as session:
        model_versions.find(session, model, call.project_id, lock=True)
        tuned = tuned_models.delete(session, model, call.project_id)
        if tuned is not None:
            call.record(session, "model.delete", tuned.id, {"name": tuned.name})
            version = model_versions.find(session, tuned.name, call.project_id)
            if version is not None:  # a checkpoint is none
                model_versions.stage(session, version, "archived", actor=call.actor, reason="The model was deleted.")
            return ModelDeleted(id=tuned.name, deleted=True)
    known = _get(call, model)
    message = f"The model '{known.id}' belongs to this deployment and cannot be deleted."
    if known.alias_of is not None:
        message = f"'{known.id}' is an alias of a model: `DELETE /v1/aliases/{{id}}` deletes it."
    raise PermissionDenied(message, code="model_not_deletable")


def _get(call: CallContext, name: str) -> Model:
    models, aliases = _models(call), call.services.registry().aliases
    if name not in models:
        names = [known for known, model in models.items() if known not in aliases and model.alias_of is None]
        message = f"The model '{clip(name)}' does not exist. {routing.describe_models(names)}"
        raise NotFound(message, param="model", code="model_not_found")
    return models[name]


def _show_model(model: Configured, created: int) -> Model:
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


def _add_serving(call: CallContext, models: dict[str, Model]) -> dict[str, Model]:
    """Return the models with where they are served. An alias is served as its model."""
    registry = call.services.registry()
    needed = {name: serving.Needed(name, model.queue, model.engine) for name, model in registry.models.items()}
    with call.db.read() as session:
        for row in session.scalars(select(Shown)):
            needed.setdefault(row.id, serving.Needed(row.id, row.queue, EngineKind.HTTP))
        states = serving.states(session, needed.values())
        bases = {tuned.name: tuned.base for tuned in tuned_models.models_of_project(session, call.project_id)}
    named = {name: model.alias_of or name for name, model in models.items()}
    asked = {name: bases.get(target, target) for name, target in named.items()}
    targets = {name: registry.aliases.get(base, base) for name, base in asked.items()}
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
        reason=serving.reason_not_served(known),
        loading_since=since,
    )


def _models(call: CallContext) -> dict[str, Model]:
    """Return the models that the project may use by name, those of its aliases last."""
    registry = call.services.registry()
    created = int(registry.stamp[0] / 1e9)
    models = {name: _show_model(model, created) for name, model in registry.models.items()}
    for alias, name in registry.aliases.items():
        models[alias] = models[name].model_copy(update={"id": alias})
    with call.db.read() as session:
        for row in session.scalars(select(Shown).order_by(Shown.id)):
            models.setdefault(row.id, Model(id=row.id, created=int(row.created_at), owned_by=row.owned_by))
        for tuned in tuned_models.models_of_project(session, call.project_id):
            models[tuned.name] = _show_tuned_model(session, tuned)
        is_permitted = routing.permission_of(session, registry, call.project_id)
        own = access.models_by_alias(session, registry, call.project_id)
    permitted = {name: model for name, model in models.items() if is_permitted(name)}
    by_alias = {
        alias: permitted[name].model_copy(update={"id": alias, "alias_of": name})
        for alias, name in own.items()
        if name in permitted
    }
    return {name: model for name, model in permitted.items() if name not in own} | by_alias


def _show_tuned_model(session: Session, tuned: TunedModel) -> Model:
    owner = names.slug(session.get_one(Project, tuned.project_id).name)
    return Model(id=tuned.name, created=int(tuned.created_at), owned_by=owner)


def manifest_of(session: Session, tuned: TunedModel) -> ModelManifest:
    """Return the origin of a tuned model, with the numbers that `auto` stood for."""
    stored, probe = tuned.manifest, tuned_models.probe_of(tuned)
    plan = session.get(FinetunePlan, tuned.job_id)
    planned = ("n_epochs", "batch_size", "learning_rate_multiplier") if plan else ()
    run = stored.get("run", {})
    return ModelManifest(
        state=cast(ModelState, tuned.state),
        probe_failure=probe.reason,
        probe_accepted=probe.accepted,
        base=tuned.base,
        parent=stored.get("parent"),
        **tuned_models.jobs_of(tuned),
        method=tuned.method,
        step=run.get("step"),
        is_checkpoint=tuned.checkpoint_step is not None,
        seed=stored.get("seed"),
        data=[
            TrainingData(role=role, file_id=row.file_id, sha256=row.sha256, rows=row.rows)
            for role, row in sorted(datasets.data_of_job(session, tuned.job_id).items())
        ],
        datasets=stored.get("datasets", {}),
        data_erased=tuned.data_erased,
        hyperparameters=stored.get("hyperparameters", {}) | {name: getattr(plan, name) for name in planned},
        training=stored.get("training", {}),
        run=run,
        sha256=tuned.sha256,
        files=stored.get("files", {}),
        evaluations=_evaluations(session, tuned),
    )


def _evaluations(session: Session, tuned: TunedModel) -> list[ModelEvaluation]:
    """Return the newest runs of evals whose items the model has answered, those of its own project."""
    asked = select(Job.payload).where(
        Job.project_id == tuned.project_id, Job.model == tuned.name, Job.kind == runs.SAMPLING
    )
    payloads = session.scalars(asked.order_by(Job.created_at.desc(), Job.id.desc()).limit(_EVALUATIONS)).all()
    sampled = [payload["run_id"] for payload in payloads if payload and payload.get("criterion") is None]
    rows = select(EvalRun).where(EvalRun.id.in_(sampled)).order_by(EvalRun.created_at.desc(), EvalRun.id.desc())
    return [
        ModelEvaluation(
            id=run.id,
            eval_id=run.eval_id,
            name=run.name,
            created_at=int(run.created_at),
            per_testing_criteria_results=run.criteria,
        )
        for run in session.scalars(rows)
    ]
