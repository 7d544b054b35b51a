"""Tables of vector stores, their files and sources, and of removals from the vector database.

These tables decide what searches find: a file's `document` is the key of its published version's vectors. Vectors under
any other key (half written, replaced, removed) are never found, and are removed later.
"""

from typing import Any

from sqlalchemy import Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial


class VectorStore(Base):
    """A vector store, or one of its other indexes.

    `dimensions` is the length of its vectors, 0 before the first one; `shortened`: the client asked for that length. A
    row with a `parent_id` is another index of that store (see `jobs.retrieval.indexes`). `index_id` names the index in
    use, if it is not the store's own row; `replaced_at` is when an index went out of use; `job_id` was the last job to
    fill it.
    """

    __tablename__ = "vector_store"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(256))
    description: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    model: Mapped[str]
    dimensions: Mapped[int] = mapped_column(default=0)
    shortened: Mapped[bool] = mapped_column(default=False)
    chunking: Mapped[dict[str, Any]]
    expires_days: Mapped[int | None]
    created_at: Mapped[float]
    active_at: Mapped[float]
    expires_at: Mapped[float | None]
    parent_id: Mapped[str | None] = mapped_column(String(64), index=True)
    index_id: Mapped[str | None] = mapped_column(String(64))
    replaced_at: Mapped[float | None]
    job_id: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_vector_store_project_created", "project_id", "created_at", "id"),
        Index("ix_vector_store_expires", "expires_at"),
    )

    @property
    def root(self) -> str:
        """Return the id of the store to which this index belongs."""
        return self.parent_id or self.id

    @property
    def current_id(self) -> str:
        """Return the id of the store's index in use, which its files refer to."""
        return self.index_id or self.id


class VectorStoreFile(Base):
    """A file in a store; `id` is the file's.

    `version` names the latest attempt to add it, by line `line` of job `job_id`. `document` is the key of the published
    version, `entries` the number of its vectors, `recipe` a hash of its content and of how it was made.
    """

    __tablename__ = "vector_store_file"

    store_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    attributes: Mapped[dict[str, Any] | None]
    chunking: Mapped[dict[str, Any]]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    job_id: Mapped[str] = mapped_column(String(64))
    line: Mapped[int]
    version: Mapped[str] = mapped_column(String(64))
    document: Mapped[str | None] = mapped_column(String(96))
    entries: Mapped[int] = mapped_column(default=0)
    usage_bytes: Mapped[int] = mapped_column(default=0)
    recipe: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_vector_store_file_created", "store_id", "created_at", "id"),
        Index("ix_vector_store_file_status", "store_id", "status"),
        Index("ix_vector_store_file_document", "store_id", "document"),
        Index("ix_vector_store_file_job", "job_id", "line"),
        Index("ix_vector_store_file_file", "id"),
        Index("ix_vector_store_file_project_bytes", "project_id", "usage_bytes"),
        Index(
            "ix_vector_store_file_recipe",
            "recipe",
            sqlite_where=text("recipe IS NOT NULL"),
            postgresql_where=text("recipe IS NOT NULL"),
        ),
    )


class VectorRemoval(Base):
    """A pending removal from the vector database.

    `what` is one document, a whole store, or the vectors to which no file points.
    """

    __tablename__ = "vector_removal"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    store_id: Mapped[str] = mapped_column(String(64), index=True)
    project_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str]
    dimensions: Mapped[int]
    what: Mapped[str] = mapped_column(String(16))  # document, store, leftovers
    document: Mapped[str | None] = mapped_column(String(96))
    file_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    due_at: Mapped[float]  # later after a failed attempt


class Source(Base):
    """The origin of a store's files. `spec` has the fields of its type; `status` says whether `job_id` syncs it now.

    `key_id` is the key that made the source, or that later began a sync of it or resumed its schedule; null where none
    is known. `seen`, `removed` and `error` are of the running sync; `counts` and `last_error` of the last one that
    ended, or `last_error` says why a later one was not begun.
    """

    __tablename__ = "source"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(16))
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
    """A document of a source, by the SHA-256 of its key (a path or a URL).

    `file_id` is its newest version; `previous_id` is the version that is still published, if the newest is not.
    `fingerprint` detects changes without reading, `sha256` after reading. `job_id` is the last sync that changed it,
    `change` what that did.
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
