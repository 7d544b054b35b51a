"""Responses that are kept. What was asked and answered lies in storage under `path`; a row is written after it."""

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base
from jobs.inference.responses import path


class KeptResponse(Base):
    """A response that can be fetched again and continued, until it expires or is deleted."""

    __tablename__ = "response"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    expires_at: Mapped[float]
    bytes: Mapped[int | None]  # of the object; None: stored before sizes were, and not measured yet

    __table_args__ = (
        Index("ix_response_expires", "expires_at"),
        Index("ix_response_project_bytes", "project_id", "bytes"),
    )

    @property
    def path(self) -> str:
        return path(self.id)
