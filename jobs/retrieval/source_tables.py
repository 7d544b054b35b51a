"""Sources of vector stores, and what each has brought in, see `jobs.retrieval.sources`."""

from typing import Any

from sqlalchemy import Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Source(Base):
    """Where a store's files come from. `spec` is what its type takes; its `status` says whether `job_id` is at it now.

    `seen`, `removed` and `error` are of the sync that runs; `counts` and `last_error` of the last one that ended.
    """

    __tablename__ = "source"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    store_id: Mapped[str] = mapped_column(String(64))
    type: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    chunking: Mapped[dict[str, Any] | None]
    attributes: Mapped[dict[str, Any] | None]
    cron: Mapped[str | None] = mapped_column(String(128))
    timezone: Mapped[str | None] = mapped_column(String(64))
    next_at: Mapped[float | None]
    paused_at: Mapped[float | None]
    status: Mapped[str] = mapped_column(String(16))
    job_id: Mapped[str | None] = mapped_column(String(64))
    began_at: Mapped[float | None]
    seen: Mapped[int] = mapped_column(default=0)
    removed: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None]
    counts: Mapped[dict[str, Any] | None]
    last_error: Mapped[dict[str, Any] | None]
    last_at: Mapped[float | None]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_source_store", "store_id", "created_at", "id"),
        Index("ix_source_next", "next_at"),
        Index("ix_source_deleted", "deleted_at"),
    )


class SourceItem(Base):
    """One document of a source, by the SHA-256 of its key (a path or a URL).

    `file_id` is its newest version; where that is not whole yet, or never will be, `previous_id` is the one that can
    still be found. `fingerprint` tells without reading whether it changed, `sha256` when it was read. `job_id` is the
    last sync that did something about it, `change` what.
    """

    __tablename__ = "source_item"

    source_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[dict[str, Any] | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    file_id: Mapped[str | None] = mapped_column(String(64))
    previous_id: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64))
    change: Mapped[str] = mapped_column(String(16))
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        Index("ix_source_item_file", "file_id"),
        Index(
            "ix_source_item_previous",
            "previous_id",
            sqlite_where=text("previous_id IS NOT NULL"),
            postgresql_where=text("previous_id IS NOT NULL"),
        ),
    )
