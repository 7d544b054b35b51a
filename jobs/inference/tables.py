"""The tables of stored answers, conversations and the cache.

Requests and answers are objects in storage at `path`, written before the row.
"""

from typing import Any

from sqlalchemy import Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial
from jobs.inference import stored


class StoredResponse(Base):
    """A response that can be fetched again and continued, until it expires or is deleted.

    The models and the metadata are null where an earlier version stored the row.
    """

    FOLDER = "responses"

    __tablename__ = "response"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    requested_model: Mapped[str | None]  # as the client names it
    model: Mapped[str | None]  # as the answer names it
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    created_at: Mapped[float]
    expires_at: Mapped[float]
    bytes: Mapped[int | None]  # of the object; None: stored by an earlier version, and not measured yet

    __table_args__ = (
        Index("ix_response_expires", "expires_at"),
        Index("ix_response_project_created", "project_id", "created_at", "id"),
        Index("ix_response_project_bytes", "project_id", "bytes"),
    )

    @property
    def path(self) -> str:
        return f"{self.FOLDER}/{self.id}"


class StoredCompletion(Base):
    """A chat completion that can be listed and fetched, until it expires or is deleted."""

    __tablename__ = "chat_completion"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    requested_model: Mapped[str]  # as the client names it
    model: Mapped[str]  # as the answer names it
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    created_at: Mapped[float]
    expires_at: Mapped[float]
    bytes: Mapped[int | None]  # of the object; None: stored by an earlier version, and not measured yet

    __table_args__ = (
        Index("ix_chat_completion_project_created", "project_id", "created_at", "id"),
        Index("ix_chat_completion_expires", "expires_at"),
        Index("ix_chat_completion_project_bytes", "project_id", "bytes"),
    )

    @property
    def path(self) -> str:
        return stored.completion_path(self.id)


class Conversation(Base):
    """A conversation. `version` counts its changes: a change names the version that it has read."""

    __tablename__ = "conversation"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    path: Mapped[str]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[float]
    bytes: Mapped[int | None]  # of the object; None: stored by an earlier version, and not measured yet

    __table_args__ = (
        Index("ix_conversation_path", "path"),
        Index("ix_conversation_project_bytes", "project_id", "bytes"),
    )


class CacheEntry(Base):
    """A vector or an answer, under a hash of all that determines it. See `jobs.inference.cache`."""

    __tablename__ = "cached"

    key: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    epoch: Mapped[int]  # of the project's cache at the request
    job_id: Mapped[str | None] = mapped_column(String(64))  # the job of the line
    tokens: Mapped[int]  # of the input
    size: Mapped[int]  # bytes of the value
    created_at: Mapped[float]
    expires_at: Mapped[float]
    value: Mapped[bytes] = mapped_column(LargeBinary)  # last, so that the other columns are read faster

    __table_args__ = (
        Index("ix_cached_expires", "expires_at", "size"),
        Index("ix_cached_project", "project_id", "epoch"),
        Index(
            "ix_cached_job",
            "job_id",
            sqlite_where=text("job_id IS NOT NULL"),
            postgresql_where=text("job_id IS NOT NULL"),
        ),
    )


class CacheEpoch(Base):
    """The number of times that a project's cache was cleared. Entries of another epoch are hidden; no row means 0."""

    __tablename__ = "cache_epoch"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[int]


class CacheUse(Base):
    """The number of hits and misses, over all projects."""

    __tablename__ = "cache_use"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    hits: Mapped[int]
    misses: Mapped[int]


class RequestMinute(Base):
    """Values of interactive requests that ended in one minute, counted. See `jobs.inference.request_counts`.

    `minute` is its beginning, in unix seconds. `total` is the sum of the values.
    """

    __tablename__ = "request_minute"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    minute: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, index=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    measure: Mapped[str] = mapped_column(String(16), primary_key=True)
    bucket: Mapped[str] = mapped_column(String(64), primary_key=True)
    count: Mapped[int]
    total: Mapped[float]


class ShadowAnswer(Base):
    """What a shadow has answered and what the client got, for evals to grade. See `jobs.inference.shadow_answers`."""

    __tablename__ = "shadow_answer"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(String(64))
    alias: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float] = mapped_column(index=True)
    line: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        Index("ix_shadow_answer_project", "project_id", "id"),
        Index("ix_shadow_answer_alias", "project_id", "alias", "created_at"),
    )


class ShadowMinute(Base):
    """Requests for an alias in one minute that its shadow, `model`, was to be asked too. See `ShadowCounts`."""

    __tablename__ = "shadow_minute"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(255), primary_key=True)
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    minute: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, index=True)
    requests: Mapped[int]
    sent: Mapped[int]
    dropped: Mapped[int]
    failed: Mapped[int]
    compared: Mapped[int]
    equal: Mapped[int]
    length_ratio: Mapped[float]
