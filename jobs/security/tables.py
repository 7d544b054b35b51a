"""Tables of projects, keys, stored bytes, and answers stored for an `Idempotency-Key`."""

from sqlalchemy import Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Project(Base):
    """The owner of all other rows. `weight` is its share of the workers relative to other projects."""

    __tablename__ = "project"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[float] = mapped_column(default=1.0)
    allow_external: Mapped[bool] = mapped_column(default=False)
    allow_media_urls: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[float]


class StorageUsage(Base):
    """The bytes that a project stores: `counted` + `added`. See `jobs.usage.stored_bytes`."""

    __tablename__ = "storage_usage"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    added: Mapped[int] = mapped_column(default=0)
    counted: Mapped[int] = mapped_column(default=0)
    counted_at: Mapped[float]


class ApiKey(Base):
    """A key, stored as the SHA-256 of its secret; `id` is the part of the key that finds the row.

    An operator's key steers the deployment. It belongs to no project: its `project_id` is empty. A key that manages
    keys creates keys of its project and revokes them. `created_by` is the key that created this one; null: the command.
    """

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    operator: Mapped[bool] = mapped_column(default=False, server_default=false())
    manages_keys: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_by: Mapped[str | None] = mapped_column(String(16), index=True)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Idempotency(Base):
    """The first answer to a create, replayed for the same key and request. `status` 0: still being made.

    Until then the row is leased: `heartbeat_at` is renewed while bytes arrive.
    """

    __tablename__ = "idempotency"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    route: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(default=0)
    body: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(64))
    heartbeat_at: Mapped[float]
    created_at: Mapped[float]

    __table_args__ = (Index("ix_idempotency_created", "created_at"),)
