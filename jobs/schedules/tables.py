"""The table of schedules."""

from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Schedule(Base):
    """A batch that is submitted again and again, see `jobs.schedules.schedules`.

    `request` is a `jobs.batches.batches.BatchRequest`, `key_id` the key that the schedule was made with.
    """

    __tablename__ = "schedule"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(16))
    cron: Mapped[str] = mapped_column(String(128))
    timezone: Mapped[str] = mapped_column(String(64))
    request: Mapped[dict[str, Any]]
    input_file_id: Mapped[str] = mapped_column(String(64))
    next_at: Mapped[float]
    last_at: Mapped[float | None]
    last_job_id: Mapped[str | None] = mapped_column(String(64))
    last_error: Mapped[str | None] = mapped_column(Text)
    paused_at: Mapped[float | None]
    created_at: Mapped[float]

    __table_args__ = (
        Index("ix_schedule_next", "next_at"),
        Index("ix_schedule_project", "project_id", "created_at", "id"),
        Index("ix_schedule_input_file", "input_file_id"),
    )
