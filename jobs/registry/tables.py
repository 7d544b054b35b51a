"""Tuned models and their versions, permissions for checkpoints, aliases of models, their moves, and feedback."""

from typing import Any, Literal

from sqlalchemy import Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, synonym

from jobs.db.base import Base

MoveAction = Literal["create", "update", "revert", "rollback", "delete"]


class TunedModel(Base):
    """The result of a fine-tuning job, or one of its checkpoints (`checkpoint_step`), under the name clients ask for.

    `state` is `ready`, `failed_probe` (an operator decides what follows) or `deleted`. `data_erased`: the training data
    is deleted.
    """

    __tablename__ = "tuned_model"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(unique=True)
    base: Mapped[str]
    job_id: Mapped[str] = mapped_column(String(64))
    checkpoint_step: Mapped[int | None]
    method: Mapped[str] = mapped_column(String(16))  # lora | full | qlora
    location: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    data_erased: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_tuned_model_project", "project_id", "state", "created_at", "id"),
        Index("ix_tuned_model_job", "job_id"),
    )


class ModelVersion(Base):
    """The place of a tuned model, which is no checkpoint, in its family, and what people say about it.

    `number` counts the versions of the family of a project. `license` is null where it is that of the base.
    `created_by` is the key that submitted the job; null where none is known.
    """

    __tablename__ = "model_version"

    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    family: Mapped[str]
    number: Mapped[int]
    semantic_version: Mapped[str | None] = mapped_column(String(64))
    stage: Mapped[str] = mapped_column(String(16))  # none | staging | production | archived
    license: Mapped[str | None]
    git_commit: Mapped[str | None] = mapped_column(String(64))
    dvc_hash: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    created_by: Mapped[str | None] = mapped_column(String(64))

    id = synonym("model")  # the id of the object in the API

    __table_args__ = (
        UniqueConstraint("project_id", "family", "number"),
        UniqueConstraint("project_id", "family", "semantic_version"),
        Index("ix_model_version_project_created", "project_id", "created_at", "model"),
        Index(
            "ix_model_version_production",
            "project_id",
            "family",
            unique=True,
            sqlite_where=text("stage = 'production'"),
            postgresql_where=text("stage = 'production'"),
        ),
    )


class BaseVersion(Base):
    """A version of a model that workers load or servers have: what it was loaded from, as a worker saw it.

    `number` counts the versions of the deployment's model, which differ by `fingerprint`. `source` is its repository
    with the commit, package with the version, folder, or name at its servers. A worker served it first at `created_at`,
    and announced it last at `seen_at`.
    """

    __tablename__ = "base_version"

    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fingerprint: Mapped[str] = mapped_column(String(64))
    engine: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(512))
    license: Mapped[str | None]
    created_at: Mapped[float]
    seen_at: Mapped[float]

    __table_args__ = (UniqueConstraint("model", "fingerprint"),)


class ModelMove(Base):
    """A change of the stage of a version, which is never changed or deleted. `number` counts those of the project.

    `gate` is what a gate reported about the move.
    """

    __tablename__ = "model_move"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255))
    number: Mapped[int]
    at: Mapped[float]
    former_stage: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(String(512))
    gate: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        Index("ix_model_move_model", "project_id", "model", "number"),
    )


class CheckpointPermission(Base):
    """The right of another project to ask for one checkpoint, by its name."""

    __tablename__ = "checkpoint_permission"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str]
    project_id: Mapped[str] = mapped_column(String(64))
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("model", "project_id"),)


class Alias(Base):
    """A name by which a project asks for a `model`, which no alias has as its name.

    `routing` is a `jobs.registry.aliases.AliasRouting` whose first target is `model`; null stands for `model` alone.
    `created_by` is the actor of the audit row of its creation. The dispatcher compares the targets by their requests
    from `watched_since` on, null where there is nothing to compare. `rollback_id` is the roll-back, the last move, that
    no answer has confirmed yet. `shadow_since` is the time of the last move where it has a shadow, null once an event
    has told that nothing is sent to it.
    """

    __tablename__ = "alias"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    model: Mapped[str] = mapped_column(String(255))
    routing: Mapped[dict[str, Any] | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    created_at: Mapped[float]
    updated_at: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    watched_since: Mapped[float | None]
    rollback_id: Mapped[str | None] = mapped_column(String(64))
    shadow_since: Mapped[float | None]

    id = synonym("name")  # the id of the object in the API

    __table_args__ = (
        Index("ix_alias_watched_since", "watched_since"),
        Index("ix_alias_rollback_id", "rollback_id"),
        Index("ix_alias_shadow_since", "shadow_since"),
    )


class Feedback(Base):
    """A score that a user, or a key where no user is named, gave to an answer. It stays when the answer goes.

    `target_id` is the id of a response, chat completion, batch or run, `item_id` the `custom_id` of a line of the
    batch, or the id of an output item of the run. `model` is the model that answered, `requested_model` the name that
    the request had; null where that is unknown. `digest` is the SHA-256 of the target and the user or key.
    `created_by` is the actor of the audit row of its creation.
    """

    __tablename__ = "feedback"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    target_type: Mapped[str] = mapped_column(String(32))
    target_id: Mapped[str] = mapped_column(String(64))
    item_id: Mapped[str | None] = mapped_column(String(512))
    model: Mapped[str | None]
    requested_model: Mapped[str | None]
    score: Mapped[float]
    user: Mapped[str | None]
    created_at: Mapped[float]
    updated_at: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    comment: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("ix_feedback_project_created", "project_id", "created_at", "id"),
        Index("ix_feedback_project_target", "project_id", "target_id"),
        Index("ix_feedback_project_model", "project_id", "model", "requested_model", "created_at", "score"),
    )


class AliasMove(Base):
    """A change of the routing of an alias, which is never changed or deleted. `number` counts those of the project.

    `routing` is that after the move, null where the alias was deleted. `gate` is what a gate reported about the move.
    """

    __tablename__ = "alias_move"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(255))
    number: Mapped[int]
    at: Mapped[float]
    action: Mapped[MoveAction] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(String(512))
    gate: Mapped[dict[str, Any] | None]
    routing: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        Index("ix_alias_move_name", "project_id", "name", "number"),
    )
