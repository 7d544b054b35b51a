"""Versions of tuned models: their place in a family, their stages with the moves between them, and their lineage.

The result of a fine-tuning job, or of an import, is the next version of its family: its base and its suffix.
"""

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, Field
from sqlalchemy import or_, select, tuple_
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.fleet.models import ModelManifest, ModelState, manifest_of
from api.http.bodies import Body, resource
from api.http.paging import After, Limit20, Order, Page, find, page
from jobs.errors import NotFound
from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.registry import model_versions, models
from jobs.registry.model_versions import Stage
from jobs.registry.models import DELETED
from jobs.registry.tables import ModelMove, ModelVersion, TunedModel

router = resource("Model versions", area="model_versions")

_LENGTH = 255
_TARGET = 128  # of an audit row
_NUMBER = "(?:0|[1-9][0-9]*)"
_LABELS = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
#: https://semver.org, without leading zeros in numbers.
_SEMANTIC = rf"^{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_LABELS})?(?:\+{_LABELS})?$"

Name = Annotated[str, Path(max_length=_LENGTH, description="The name of the model.")]
NameAfter = Annotated[str | None, Query(max_length=_LENGTH, description="Id of the last object of the previous page.")]
FamilyFilter = Annotated[str | None, Query(max_length=_LENGTH, description="`<base>:<suffix>`, a whole family.")]
AtFilter = Annotated[
    int | None,
    Query(ge=0, le=1 << 40, description="Unix seconds: the versions and stages as they were at the end of it."),
]


# ── requests ──


class UpdateModelVersion(Body):
    """The fields to change. Null removes one, but leaves the stage as it is."""

    stage: Stage | None = None
    archive_existing: bool = Field(
        default=False, description="The version that is in production moves to `archived`. Else it is in the way."
    )
    reason: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Why the stage changes.")
    semantic_version: Annotated[str, Field(max_length=64, pattern=_SEMANTIC)] | None = Field(
        default=None, description="Such as `1.4.0`, of one version of the family."
    )
    license: Annotated[str, Field(min_length=1, max_length=_LENGTH)] | None = Field(
        default=None, description="In place of that of the base."
    )
    git_commit: Annotated[str, Field(pattern="^[0-9a-f]{7,64}$")] | None = None
    dvc_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{32,60}(?:\.dir)?$")] | None = None


# ── objects ──


class ModelVersionObject(BaseModel):
    """A version. `id` is the name of its model, `stage` its stage, with `at` that of then.

    `parent` is the tuned model that the training went on from. An imported version has a `model_import` and no
    `fine_tuning_job`. `sha256` is that of the manifest of its files, `bytes` their size. `license` is that of the base
    where nobody gave another one; null where it is unknown. `metrics` are those of the step whose weights these are.
    `manifest` is that of `GET /v1/models/{id}`, null in lists.
    """

    id: str
    object: Literal["model.version"] = "model.version"
    family: str
    number: int
    semantic_version: str | None
    stage: Stage
    state: ModelState
    base: str
    parent: str | None
    fine_tuning_job: str | None
    model_import: str | None
    method: str
    sha256: str
    bytes: int | None
    license: str | None
    metrics: dict[str, Any]
    data_erased: bool
    git_commit: str | None
    dvc_hash: str | None
    created_at: int
    created_by: str | None
    manifest: ModelManifest | None = None


class ModelMoveObject(BaseModel):
    """A change of the stage of a version. `gate` is what a gate reported about the move."""

    id: str
    object: Literal["model.move"] = "model.move"
    model: str
    former_stage: Stage
    stage: Stage
    created_at: int
    actor: str
    reason: str | None
    gate: dict[str, Any] | None


def _show_all(session: Session, versions: list[ModelVersion], stages: dict[str, str]) -> dict[str, ModelVersionObject]:
    """Return versions as clients see them, by the names of their models. `stages` are shown in place of today's."""
    names = [version.model for version in versions]
    tuned = {row.name: row for row in session.scalars(select(TunedModel).where(TunedModel.name.in_(names)))}
    steps = {name: (model.job_id, model.manifest.get("run", {}).get("step")) for name, model in tuned.items()}
    at_steps = tuple_(FinetuneCheckpoint.job_id, FinetuneCheckpoint.step).in_(list(steps.values()))
    checkpoints = session.scalars(select(FinetuneCheckpoint).where(at_steps))
    metrics = {(row.job_id, row.step): row.metrics for row in checkpoints}
    return {
        version.model: _show(
            version,
            tuned[version.model],
            stages.get(version.model, version.stage),
            metrics.get(steps[version.model], {}),
        )
        for version in versions
    }


def _show(version: ModelVersion, model: TunedModel, stage: str, metrics: dict[str, Any]) -> ModelVersionObject:
    stored = model.manifest
    base = stored.get("run", {}).get("base", {})
    shown = {name: getattr(version, name) for name in ("id", "family", "number", "semantic_version", "created_by")}
    shown |= {name: getattr(model, name) for name in ("state", "base", "method", "sha256", "data_erased")}
    shown |= {name: getattr(version, name) for name in ("git_commit", "dvc_hash")}
    shown |= models.jobs_of(model)
    shown |= {"stage": stage, "metrics": metrics, "created_at": int(version.created_at)}
    shown |= {"parent": stored.get("parent"), "bytes": stored.get("bytes")}
    return ModelVersionObject.model_validate(shown | {"license": version.license or base.get("license")})


def _show_move(move: ModelMove) -> ModelMoveObject:
    names = ("id", "model", "former_stage", "stage", "actor", "reason", "gate")
    return ModelMoveObject.model_validate({name: getattr(move, name) for name in names} | {"created_at": int(move.at)})


# ── routes ──


@router.get("/model_versions")
def list_model_versions(
    call: Call,
    after: NameAfter = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    family: FamilyFilter = None,
    stage: Annotated[Stage | None, Query(description="Only versions in this stage.")] = None,
    at: AtFilter = None,
) -> Page[ModelVersionObject]:
    """List the versions of the project's tuned models. With `at` they are listed as they were then."""
    own = select(ModelVersion).where(ModelVersion.project_id == call.project_id)
    end = None if at is None else at + 1  # times are shown without the fractions of their second
    chosen = own.join(TunedModel, TunedModel.name == ModelVersion.model)
    if end is None:
        chosen = chosen.where(TunedModel.state != DELETED)
    else:
        existed = or_(TunedModel.deleted_at.is_(None), TunedModel.deleted_at >= end)
        chosen = chosen.where(ModelVersion.created_at < end, existed)
    if family is not None:
        chosen = chosen.where(ModelVersion.family == family)
    if stage is not None:
        chosen = chosen.where((ModelVersion.stage if end is None else model_versions.stage_at(end)) == stage)
    with call.db.read() as session:
        rows, more = find(session, chosen, ModelVersion, after=after, limit=limit, order=order, among=own)
        former = {} if end is None else model_versions.stages_at(session, [row.model for row in rows], end)
        shown = _show_all(session, list(rows), former)
    return page(rows, more, lambda version: shown[version.model])


@router.get("/model_versions/{model_version:path}/moves")
def list_model_moves(
    call: Call, model_version: Name, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[ModelMoveObject]:
    """List the changes of the stage of a version, also of a deleted one. They are stored for ever."""
    with call.db.read() as session:
        moves = model_versions.moves_of(get_version(session, call, model_version))
        rows, more = find(session, moves, ModelMove, after=after, limit=limit, order=order, by="at")
    return page(rows, more, _show_move)


@router.get("/model_versions/{model_version:path}")
def retrieve_model_version(call: Call, model_version: Name) -> ModelVersionObject:
    """Return a version, with the manifest of its model; also a deleted one."""
    with call.db.read() as session:
        return _show_with_manifest(session, get_version(session, call, model_version))


@router.post("/model_versions/{model_version:path}")
def update_model_version(call: Call, model_version: Name, body: UpdateModelVersion) -> ModelVersionObject:
    """Move a version to another stage, or change what is known of it."""
    with call.db.write() as session:
        version = get_version(session, call, model_version, lock=True)
        former = version.stage
        if body.stage is not None:
            model_versions.stage(
                session,
                version,
                body.stage,
                actor=call.actor,
                reason=body.reason,
                archive_existing=body.archive_existing,
            )
        given = body.model_fields_set
        if "semantic_version" in given:
            model_versions.name_semantic_version(session, version, body.semantic_version)
        details: dict[str, Any] = {"name": version.model, "former_stage": former, "stage": version.stage}
        details["semantic_version"] = version.semantic_version
        for name in given & {"license", "git_commit", "dvc_hash"}:
            details[name] = getattr(body, name)
            setattr(version, name, details[name])
        call.record(session, "model_version.update", version.model[:_TARGET], details)
        return _show_with_manifest(session, version)


def get_version(session: Session, call: CallContext, name: str, *, lock: bool = False) -> ModelVersion:
    """Return a version; with `lock`, to change it, one whose model was not deleted. Raises NotFound."""
    version = model_versions.find(session, name, call.project_id, lock=lock)
    deleted = TunedModel.name == name, TunedModel.state == DELETED
    if version is None or (lock and session.scalar(select(TunedModel.id).where(*deleted)) is not None):
        message = f"No version of a model found with the name '{clip(name)}'."
        raise NotFound(message, param="model_version", code="model_not_found")
    return version


def _show_with_manifest(session: Session, version: ModelVersion) -> ModelVersionObject:
    session.flush()
    tuned = session.scalars(select(TunedModel).where(TunedModel.name == version.model)).one()
    shown = _show_all(session, [version], {})[version.model]
    return shown.model_copy(update={"manifest": manifest_of(session, tuned)})
