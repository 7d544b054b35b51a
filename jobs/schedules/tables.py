"""The tables of schedules.

schedule ── schedule_file     the files that its request names, beside its input file
"""

from typing import Any

from sqlalchemy import Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class Schedule(Base):
    """A job that is submitted again and again, see `jobs.schedules.schedules`.

    `request` is a checked request of `kind`, a row of `jobs.schedules.schedules.KINDS`; `job` is the request as the
    client sent it, null for a batch. `input_file_id` is a batch's. `key_id` is the key that the schedule was made with.
    """

    __tablename__ = "schedule"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(16))
    cron: Mapped[str] = mapped_column(String(128))
    timezone: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32), default="batch", server_default=text("'batch'"))
    request: Mapped[dict[str, Any]]
    job: Mapped[dict[str, Any] | None]
    input_file_id: Mapped[str | None] = mapped_column(String(64))
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


class ScheduleFile(Base):
    """A file that a schedule names, and that therefore does not expire."""

    __tablename__ = "schedule_file"

    schedule_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    file_id: Mapped[str] = mapped_column(String(64), primary_key=True)

    __table_args__ = (Index("ix_schedule_file_file", "file_id"),)
