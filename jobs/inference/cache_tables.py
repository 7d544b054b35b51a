"""What was computed once and may be given again: vectors of texts, and answers whose clients asked for it."""

from sqlalchemy import Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Cached(Base):
    """One vector or answer, under a hash of what it depends on. See `jobs.inference.cache`."""

    __tablename__ = "cached"

    key: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    epoch: Mapped[int]  # of the project when it was asked for
    job_id: Mapped[str | None] = mapped_column(String(64))  # whose line it was
    tokens: Mapped[int]  # of the input
    size: Mapped[int]  # bytes of the value
    created_at: Mapped[float]
    expires_at: Mapped[float]
    value: Mapped[bytes] = mapped_column(LargeBinary)  # last: what is looked at without it is read faster

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
    """How often a project's cache was cleared: what has another number is not there any more. Without a row: never."""

    __tablename__ = "cache_epoch"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[int]


class CacheUse(Base):
    """How often something was found, over all projects."""

    __tablename__ = "cache_use"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    hits: Mapped[int]
    misses: Mapped[int]
