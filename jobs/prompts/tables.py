"""The tables of prompts.

prompt ──┬─ prompt_version 1, 2, …      never changed and never deleted
         └─ labels, default_version     the numbers of some of them
"""

from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Prompt(Base):
    """A prompt. Its id is the project's own: one that was made elsewhere may have the same id in several projects.

    `labels` has the number of a version by the name of each label. `imported_from` is the id that the prompt had
    elsewhere.
    """

    __tablename__ = "prompt"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str | None]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    default_version: Mapped[int]
    latest_version: Mapped[int]
    labels: Mapped[dict[str, Any]]
    imported_from: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    archived_at: Mapped[float | None]

    __table_args__ = (Index("ix_prompt_project_created", "project_id", "created_at", "id"),)


class PromptVersion(Base):
    """A version of a prompt. `content` is complete, `hash` is its SHA-256, `bytes` its size as JSON."""

    __tablename__ = "prompt_version"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    prompt_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    created_by: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    content: Mapped[dict[str, Any]]  # last, so that the other columns are read faster

    __table_args__ = (Index("ix_prompt_version_project_bytes", "project_id", "bytes"),)
