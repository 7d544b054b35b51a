"""The tables of datasets.

    named_dataset ── dataset_version 1, 2, … ──┬─ dataset_file `split`     a file of its rows, made by the version's job
                                               └─ dataset_file `source`    a file that the job reads

The table `dataset` is not one of these: it has the snapshots of training data, see `jobs.finetuning.tables`.
"""

from typing import Any

from sqlalchemy import Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class NamedDataset(Base):
    """A dataset. `split` says how the rows of each version are split (`jobs.datasets.splits`).

    `latest_version` is the number of the newest version, also of one that failed or was deleted.
    """

    __tablename__ = "named_dataset"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    split: Mapped[dict[str, Any]]
    seed: Mapped[int]
    latest_version: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]

    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_named_dataset_project_created", "project_id", "created_at", "id"),
    )


class DatasetVersion(Base):
    """A version of a dataset, whose job has the same id and says its state.

    `rows`, `bytes` and `sha256` are of all rows in their order, `duplicates` counts those left out; all are null until
    the rows are written. `git_commit` and `dvc_hash` are the client's words for where the rows come from.
    """

    __tablename__ = "dataset_version"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    sources: Mapped[list[Any]]
    deduplicate: Mapped[bool]
    git_commit: Mapped[str | None] = mapped_column(String(64))
    dvc_hash: Mapped[str | None] = mapped_column(String(64))
    rows: Mapped[int | None]
    bytes: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    duplicates: Mapped[int | None]
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("dataset_id", "number"),)


class DatasetFile(Base):
    """A file of a version, in the `role` of a `split` that it has or of a `source` that it is made of.

    A split has a `name`, and the count, size and SHA-256 of its rows.
    """

    __tablename__ = "dataset_file"

    version_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(8), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64))
    file_id: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int | None]
    bytes: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (Index("ix_dataset_file_file", "file_id"),)
