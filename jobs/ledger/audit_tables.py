"""The append-only record of who did what, and the head of its hash chain."""

from typing import Any

from sqlalchemy import Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial


class Audit(Base):
    """One job transition or mutating call. `seal` and `hash` are added within a second by the leading dispatcher."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    at: Mapped[int]  # microseconds since 1970
    actor: Mapped[str] = mapped_column(String(96))
    action: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str | None] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(128))
    source: Mapped[str | None] = mapped_column(String(32))
    destination: Mapped[str | None] = mapped_column(String(32))
    request_id: Mapped[str | None] = mapped_column(String(64))
    details: Mapped[dict[str, Any] | None]
    seal: Mapped[int | None] = mapped_column(unique=True)
    hash: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_audit_target", "target"),
        Index(
            "ix_audit_unsealed",
            "id",
            sqlite_where=text("seal IS NULL"),
            postgresql_where=text("seal IS NULL"),
        ),
    )


class AuditHead(Base):
    """One row: the last seal and its hash."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seal: Mapped[int] = mapped_column(default=0)
    hash: Mapped[str] = mapped_column(String(64))
