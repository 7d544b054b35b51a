"""The tables of monitors of drift and their checks.

drift_monitor ── drift_check ── job     a check has the id of its job; the baseline is a job too
"""

from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class DriftMonitor(Base):
    """A comparison that is made again and again: which texts are compared, and with what.

    `source` is what a check samples, as `jobs.monitoring.monitors.Source` has it, `window_seconds` the age of the
    oldest stored answer of one. `baseline_id` is the id of the job that makes the baseline, and the name of the object
    with its features.
    """

    __tablename__ = "drift_monitor"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    source: Mapped[dict[str, Any]]
    window_seconds: Mapped[int]
    sample: Mapped[int]
    embedding_model: Mapped[str]
    baseline_id: Mapped[str] = mapped_column(String(64))
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    created_at: Mapped[float]

    __table_args__ = (
        Index("ix_drift_monitor_project_created", "project_id", "created_at", "id"),
        Index("ix_drift_monitor_baseline", "baseline_id"),
    )


class DriftCheck(Base):
    """A check of a monitor, whose job has the same id. `features` has the distances; null until the check completes."""

    __tablename__ = "drift_check"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    monitor_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    is_drift: Mapped[bool | None]
    features: Mapped[list[Any] | None]
    created_at: Mapped[float]

    __table_args__ = (Index("ix_drift_check_monitor_created", "monitor_id", "created_at", "id"),)
