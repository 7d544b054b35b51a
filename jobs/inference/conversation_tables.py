"""Conversations. The last of their items lie in storage under `path`, in an object that names the others."""

from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Conversation(Base):
    """What was said so far. `version` counts the changes: who makes one names the version it has read."""

    __tablename__ = "conversation"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    path: Mapped[str]
    labels: Mapped[dict[str, Any]]  # OpenAI's `metadata`
    created_at: Mapped[float]
    bytes: Mapped[int | None]  # of the object; None: stored before sizes were, and not measured yet

    __table_args__ = (
        Index("ix_conversation_path", "path"),
        Index("ix_conversation_project_bytes", "project_id", "bytes"),
    )
