"""Tuned models: registered when a job has trained them, found by name for a project, deleted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.ledger import audit
from jobs.ledger.tables import Job
from jobs.registry.tables import CheckpointPermission, ModelVersion, TunedModel
from jobs.security.tables import Project

PREFIX: Final = "ftmodel_"
NAME_PREFIX: Final = "ft:"  # of every tuned model; others may have it too
NAME_LENGTH: Final = 255
CHECKPOINT: Final = ":ckpt-step-"  # before the step, at the end of a checkpoint's name
FULL: Final = "full"  # the method whose results have weights of their own
READY: Final = "ready"
FAILED_PROBE: Final = "failed_probe"
DELETED: Final = "deleted"
MAX_PERMISSIONS: Final = 1000  # of a checkpoint
PURGED: Final = ""  # the location of a deleted model whose files are gone


_PROBE: Final = "probe"  # in the manifest of a model


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """The record of a model's probe.

    `reason` is how the engine differed when the probe failed. `trial` counts the decisions of operators. An `accepted`
    model is served whatever the probe says.
    """

    reason: str | None = None
    trial: int = 0
    accepted: bool = False


def register(
    session: Session,
    *,
    name: str,
    project_id: str,
    base: str,
    job_id: str,
    method: str,
    location: str,
    sha256: str,
    manifest: Mapping[str, Any],
    checkpoint_step: int | None = None,
    state: str = READY,
) -> TunedModel:
    """Add a model under its name, whose files are complete. Called twice for a name, it adds the model once.

    The result of a job, which is no checkpoint, becomes the next version of its family.
    """
    model = session.scalar(select(TunedModel).where(TunedModel.name == name))
    if model is None:
        model = TunedModel(
            id=new_id(PREFIX),
            project_id=project_id,
            name=name,
            base=base,
            job_id=job_id,
            checkpoint_step=checkpoint_step,
            method=method,
            location=location,
            sha256=sha256,
            manifest=dict(manifest),
            state=state,
            created_at=now(),
        )
        session.add(model)
        session.flush()
        if checkpoint_step is None:
            _number_results(session, project_id)
    return model


def family_of(model: TunedModel) -> str:
    """Return the family of a job's result: its base, and the suffix in its name, `…:<suffix>:<id>`."""
    return f"{model.base}:{model.name.rpartition(':')[0].rpartition(':')[2]}"


def jobs_of(model: TunedModel) -> dict[str, str | None]:
    """Return the job that a model is the result of, under the field of the API for jobs of its kind."""
    imported = model.manifest.get("imported", False)
    return {"fine_tuning_job": None if imported else model.job_id, "model_import": model.job_id if imported else None}


def _number_results(session: Session, project_id: str) -> None:
    """Make a version of each result of a project that is none yet, in the order of creation.

    Older ones are among them while workers of the last release still run, which registers no versions.
    """
    session.get(Project, project_id, with_for_update={"key_share": True})  # numbers alone
    is_version = exists().where(ModelVersion.model == TunedModel.name)
    results = TunedModel.project_id == project_id, TunedModel.checkpoint_step.is_(None), ~is_version
    rows = select(TunedModel).where(*results).order_by(TunedModel.created_at, TunedModel.id)
    for model in session.scalars(rows).all():
        family, job = family_of(model), session.get(Job, model.job_id)
        of_family = ModelVersion.project_id == project_id, ModelVersion.family == family
        last = session.scalar(select(func.max(ModelVersion.number)).where(*of_family)) or 0
        version = ModelVersion(
            model=model.name,
            project_id=project_id,
            family=family,
            number=last + 1,
            stage="none",
            created_at=model.created_at,
            created_by=audit.actor_of(job.key_id) if job is not None and job.key_id else None,
        )
        session.add(version)
        session.flush()


def is_tuned(name: str) -> bool:
    """Return whether a name is spelled as one of a tuned model or a checkpoint."""
    return name.startswith(NAME_PREFIX) and len(name) <= NAME_LENGTH


def base_model_of(name: str) -> str:
    """Return the base in the name of a tuned model, `ft:<base>:<slug>:<suffix>:<id>`; of another name that itself."""
    if not is_tuned(name):
        return name
    return name.removeprefix(NAME_PREFIX).partition(CHECKPOINT)[0].rsplit(":", 3)[0]


def find(session: Session, name: str, project_id: str) -> TunedModel | None:
    """Return the model of that name which a project may ask for: its own, or a checkpoint by permission.

    A model that failed its probe is returned with its state, so that the caller can say why it is not served.
    """
    model = find_any(session, name, project_id)
    return model if model is not None and model.state != DELETED else None


def find_any(session: Session, name: str, project_id: str) -> TunedModel | None:
    """Return the same, and also one that was deleted, so that what asks for it is told so."""
    return session.scalar(select(TunedModel).where(TunedModel.name == name, _may_ask(project_id)))


def names_with_models(session: Session, names: Collection[str], project_id: str) -> set[str]:
    """Return those of `names` that tuned models have which a project may ask for, and which were not deleted."""
    which = TunedModel.name.in_(names), TunedModel.state != DELETED, _may_ask(project_id)
    return set(session.scalars(select(TunedModel.name).where(*which)))


def _may_ask(project_id: str) -> ColumnElement[bool]:
    """Return the condition of the models that a project may ask for: its own, and checkpoints by permission."""
    of_model = CheckpointPermission.model == TunedModel.name
    permitted = exists().where(of_model, CheckpointPermission.project_id == project_id)
    return or_(TunedModel.project_id == project_id, permitted)


def served_hashes(session: Session) -> set[str]:
    """Return the SHA-256 of all models that are served."""
    return set(session.scalars(select(TunedModel.sha256).where(TunedModel.state == READY)))


def count_full_models(session: Session) -> int:
    """Return how many models of jobs are served with weights of their own. Checkpoints are left out."""
    which = TunedModel.state == READY, TunedModel.method == FULL, TunedModel.checkpoint_step.is_(None)
    return session.scalar(select(func.count()).select_from(TunedModel).where(*which)) or 0


def probe_of(model: TunedModel) -> ProbeRecord:
    """Return what is known of a model's probe."""
    return ProbeRecord(**model.manifest.get(_PROBE, {}))


def fail_probe(session: Session, model_id: str, reason: str, trial: int) -> None:
    """Serve a model no more that answers unlike its trainer, unless an operator has decided since that `trial`."""
    model = session.get(TunedModel, model_id, with_for_update=True)
    if model is not None and model.state == READY and probe_of(model).trial == trial:
        _set_probe(model, FAILED_PROBE, ProbeRecord(reason, trial))


def decide_probe(session: Session, name: str, *, accept: bool, actor: str) -> TunedModel:
    """Have a model probed again that failed its probe, or with `accept` serve it whatever the probe says.

    Raises:
        NotFound: No project has a model of that name.
    """
    rows = select(TunedModel).where(TunedModel.name == name, TunedModel.state != DELETED)
    model = session.scalar(rows.with_for_update())
    if model is None:
        raise NotFound(f"There is no tuned model '{name}'.", param="model", code="model_not_found")
    _set_probe(model, READY, ProbeRecord(None, probe_of(model).trial + 1, accept))
    details = {"name": name, "accepted": accept}
    audit.record(
        session, actor=actor, action="model.probe", target=model.id, project_id=model.project_id, details=details
    )
    return model


def _set_probe(model: TunedModel, state: str, record: ProbeRecord) -> None:
    model.state, model.manifest = state, {**model.manifest, _PROBE: asdict(record)}


def models_of_project(session: Session, project_id: str) -> Sequence[TunedModel]:
    """Return the models that a project may ask for, its own and those it has a permission for, the oldest first."""
    rows = select(TunedModel).where(TunedModel.state == READY, _may_ask(project_id))
    return session.scalars(rows.order_by(TunedModel.created_at, TunedModel.id)).all()


def results(session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """Return the names of the models that these jobs resulted in, by job. Checkpoints are left out."""
    rows = select(TunedModel.job_id, TunedModel.name).where(
        TunedModel.job_id.in_(job_ids), TunedModel.checkpoint_step.is_(None)
    )
    return {job_id: name for job_id, name in session.execute(rows)}  # noqa: C416 (rows are not pairs to a type checker)


def delete(session: Session, name: str, project_id: str) -> TunedModel | None:
    """Stop serving a project's own model; return it, or None when the project has no such model.

    The row stays, so that what still asks for the name is told that the model was deleted. The model of a job takes
    its checkpoints with it.
    """
    conditions = TunedModel.project_id == project_id, TunedModel.state != DELETED
    model = session.scalar(select(TunedModel).where(TunedModel.name == name, *conditions).with_for_update())
    if model is None:
        return None
    which = TunedModel.id == model.id if model.checkpoint_step is not None else TunedModel.job_id == model.job_id
    for row in session.scalars(select(TunedModel).where(which, *conditions).order_by(TunedModel.id)):
        row.state = DELETED
        row.deleted_at = now()
    return model


def permit(session: Session, name: str, project_ids: Sequence[str], *, created_by: str) -> list[CheckpointPermission]:
    """Let projects ask for a checkpoint. A project that may already keeps its permission.

    Raises: InvalidRequest, for more than `MAX_PERMISSIONS` of a checkpoint.
    """
    rows = []
    for project_id in dict.fromkeys(project_ids):
        same = CheckpointPermission.model == name, CheckpointPermission.project_id == project_id
        row = session.scalar(select(CheckpointPermission).where(*same))
        if row is None:
            row = CheckpointPermission(
                id=new_id("cp_"), model=name, project_id=project_id, created_by=created_by, created_at=now()
            )
            session.add(row)
            session.flush()
        rows.append(row)
    count = select(func.count()).where(CheckpointPermission.model == name)
    if (session.scalar(count) or 0) > MAX_PERMISSIONS:
        message = f"A checkpoint has at most {MAX_PERMISSIONS} permissions. Delete some first."
        raise InvalidRequest(message, param="project_ids", code="too_many_permissions")
    return rows


def purgeable(session: Session, limit: int) -> Sequence[TunedModel]:
    """Return deleted models whose files are still stored, and are those of no model that is not deleted."""
    other = aliased(TunedModel)
    shared = exists().where(other.location == TunedModel.location, other.state != DELETED)
    rows = select(TunedModel).where(TunedModel.state == DELETED, TunedModel.location != PURGED, ~shared)
    return session.scalars(rows.order_by(TunedModel.id).limit(limit)).all()


def record_purge(session: Session, model_id: str) -> None:
    """Note that the files of a deleted model are gone."""
    deleted = TunedModel.id == model_id, TunedModel.state == DELETED
    session.execute(update(TunedModel).where(*deleted).values(location=PURGED))
