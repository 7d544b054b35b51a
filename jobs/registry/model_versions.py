"""Versions of tuned models: their families, their stages, and the moves between stages, which stay for ever.

    family = base:suffix ── version 1, 2, 3 … ── stage: none ─▶ staging ─▶ production ─▶ archived, or any other way
                                                           └─ each change is a move: who, when, why, what a gate said

One version of a family is in production. A family is that of a project: another project has its own of the name.
`jobs.registry.models` numbers the versions.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest
from jobs.ids import new_id
from jobs.ledger import events
from jobs.registry.models import READY
from jobs.registry.tables import ModelMove, ModelVersion, TunedModel
from jobs.security.tables import Project

Stage = Literal["none", "staging", "production", "archived"]

PREFIX: Final = "mmove_"
STAGED: Final = "model.version.staged"
MAX_MOVES: Final = 100_000  # of a project
_SERVED: Final = frozenset({"staging", "production"})


def find(session: Session, name: str, project_id: str, *, lock: bool = False) -> ModelVersion | None:
    """Return a project's version by the name of its model; with `lock` this transaction alone changes the project's.

    It may be that of a model that was deleted.
    """
    if lock:
        session.get(Project, project_id, with_for_update={"key_share": True})
    version = session.get(ModelVersion, name, populate_existing=lock)
    return version if version is not None and version.project_id == project_id else None


def stage(
    session: Session,
    version: ModelVersion,
    stage: Stage,
    *,
    actor: str,
    reason: str | None = None,
    gate: Mapping[str, Any] | None = None,
    archive_existing: bool = False,
) -> ModelMove | None:
    """Move a version, which `find` has locked, to a stage, with its event; return None where it is there already.

    With `archive_existing` the version that is in production makes room for the new one and moves to `archived`.

    Raises:
        Conflict: Another version of the family is in production, or the project has as many moves as it may have.
        InvalidRequest: The model is not served, and so fit for no stage but `none` and `archived`.
    """
    if version.stage == stage:
        return None
    if stage in _SERVED:
        _check_ready(session, version)
    if stage == "production" and (former := in_production(session, version)) is not None:
        if not archive_existing:
            message = (
                f"Version {former.number}, '{former.model}', is in production. Only one version of a family is: "
                "`archive_existing` moves it to `archived`."
            )
            raise Conflict(message, param="archive_existing", code="production_taken")
        _move(session, former, "archived", actor=actor, reason=reason, gate=gate)
        session.flush()  # the index of versions in production holds one of a family
    return _move(session, version, stage, actor=actor, reason=reason, gate=gate)


def in_production(session: Session, version: ModelVersion) -> ModelVersion | None:
    """Return the version of the same family that is in production."""
    of_family = ModelVersion.project_id == version.project_id, ModelVersion.family == version.family
    return session.scalar(select(ModelVersion).where(*of_family, ModelVersion.stage == "production"))


def name_semantic_version(session: Session, version: ModelVersion, name: str | None) -> None:
    """Give a version, which `find` has locked, a semantic version, or none.

    Raises: Conflict, where another version of the family has it.
    """
    if name is not None:
        of_family = ModelVersion.project_id == version.project_id, ModelVersion.family == version.family
        same = select(ModelVersion.number).where(*of_family, ModelVersion.semantic_version == name)
        number = session.scalar(same.where(ModelVersion.model != version.model))
        if number is not None:
            message = f"Version {number} of the family '{version.family}' is {name} already."
            raise Conflict(message, param="semantic_version", code="semantic_version_taken")
    version.semantic_version = name


def moves_of(version: ModelVersion) -> Select[ModelMove]:
    """Select the moves of a version."""
    return select(ModelMove).where(ModelMove.project_id == version.project_id, ModelMove.model == version.model)


def stage_at(time: float) -> ColumnElement[str]:
    """Return the stage that a version, a row of `model_version`, had before a time."""
    of_version = ModelMove.project_id == ModelVersion.project_id, ModelMove.model == ModelVersion.model
    last = select(ModelMove.stage).where(*of_version, ModelMove.at < time).order_by(ModelMove.number.desc()).limit(1)
    return func.coalesce(last.correlate(ModelVersion).scalar_subquery(), "none")


def stages_at(session: Session, names: Collection[str], time: float) -> dict[str, str]:
    """Return the stages that versions had before a time, by the names of their models."""
    rows = session.execute(select(ModelVersion.model, stage_at(time)).where(ModelVersion.model.in_(names)))
    return {name: stage for name, stage in rows}  # noqa: C416 (rows are not pairs to a type checker)


def is_ready(session: Session, version: ModelVersion) -> bool:
    """Return whether the model of a version is served."""
    return session.scalar(select(TunedModel.state).where(TunedModel.name == version.model)) == READY


def _check_ready(session: Session, version: ModelVersion) -> None:
    if not is_ready(session, version):
        message = f"The model '{version.model}' is not served: it was deleted, or it failed its probe."
        raise InvalidRequest(message, param="stage", code="model_not_ready")


def _move(
    session: Session,
    version: ModelVersion,
    stage: Stage,
    *,
    actor: str,
    reason: str | None,
    gate: Mapping[str, Any] | None,
) -> ModelMove:
    last = session.scalar(select(func.max(ModelMove.number)).where(ModelMove.project_id == version.project_id)) or 0
    if last >= MAX_MOVES and stage != "archived":
        message = f"The versions of a project move at most {MAX_MOVES} times. Use another project."
        raise Conflict(message, param="stage", code="too_many_model_moves")
    move = ModelMove(
        id=new_id(PREFIX),
        project_id=version.project_id,
        model=version.model,
        number=last + 1,
        at=now(),
        former_stage=version.stage,
        stage=stage,
        actor=actor,
        reason=reason,
    )
    if gate is not None:  # JSON null is not NULL
        move.gate = dict(gate)
    version.stage = stage
    session.add(move)
    data = {"id": move.id, "model": version.model, "former_stage": move.former_stage, "stage": stage, "reason": reason}
    event = events.record(session, subject_id=move.id, seq=1, project_id=move.project_id, type=STAGED, data=data)
    session.flush()
    events.fan_out(session, event)
    return move
