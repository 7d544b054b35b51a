"""The tables of evals and their runs. The items of a run and their grades are objects in storage, without a row each.

eval ── eval_run ── job     the run's row has the id of its job; it goes when the client deletes the run
"""

from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Eval(Base):
    """A group of runs: the kind of data that they read, and the criteria by which each item is graded.

    `imported_from` is the id of an eval that was made elsewhere.
    """

    __tablename__ = "eval"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    data_source_config: Mapped[dict[str, Any]]
    testing_criteria: Mapped[list[Any]]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    imported_from: Mapped[str | None]
    created_at: Mapped[float]
    updated_at: Mapped[float]

    __table_args__ = (
        Index("ix_eval_project_imported", "project_id", "imported_from", unique=True),
        Index("ix_eval_project_created", "project_id", "created_at", "id"),
        Index("ix_eval_project_updated", "project_id", "updated_at", "id"),
    )


class EvalRun(Base):
    """A run of an eval, whose job has the same id.

    `data_source` is what the client asked for, without the items. `bytes` is the size of the items and grades.
    `criteria` counts the items that passed, failed and errored by each testing criterion; null until the run has ended.
    `imported_from` is the id of a run that was made elsewhere.
    """

    __tablename__ = "eval_run"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    eval_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    data_source: Mapped[dict[str, Any]]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    imported_from: Mapped[str | None]
    criteria: Mapped[list[Any] | None]
    bytes: Mapped[int]
    created_at: Mapped[float]

    __table_args__ = (
        Index("ix_eval_run_eval_imported", "eval_id", "imported_from", unique=True),
        Index("ix_eval_run_eval_created", "eval_id", "created_at", "id"),
        Index("ix_eval_run_project_bytes", "project_id", "bytes"),
    )
