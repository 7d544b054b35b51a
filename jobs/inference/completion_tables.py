"""Chat completions that are kept. What was asked and answered lies in storage under `path`; a row comes after it."""

from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base
from jobs.inference.completions import path


class KeptCompletion(Base):
    """A chat completion that can be listed and fetched, until it expires or is deleted."""

    __tablename__ = "chat_completion"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    asked: Mapped[str]  # the model, as the client names it
    model: Mapped[str]  # and as the answer does
    labels: Mapped[dict[str, Any] | None]  # OpenAI's `metadata`
    created_at: Mapped[float]
    expires_at: Mapped[float]
    bytes: Mapped[int | None]  # of the object; None: stored before sizes were, and not measured yet

    __table_args__ = (
        Index("ix_chat_completion_project_created", "project_id", "created_at", "id"),
        Index("ix_chat_completion_expires", "expires_at"),
        Index("ix_chat_completion_project_bytes", "project_id", "bytes"),
    )

    @property
    def path(self) -> str:
        return path(self.id)
