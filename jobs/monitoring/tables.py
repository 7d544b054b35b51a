"""The tables of monitors of drift with their checks, and of online evaluations with their rounds.

drift_monitor ── drift_check ── job               a check has the id of its job; the baseline is a job too
online_evaluation ── online_round ── eval_run     a round has the id of its run
"""

from typing import Any

from sqlalchemy import Index, String, Text
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


class OnlineEvaluation(Base):
    """An eval that grades a sampled share of the stored answers again and again.

    `source` says which answers, `threshold` below what there is an alert, as `jobs.monitoring.online_evaluations` has
    them. Answers from before `marked_at` are done. `value` is what was last compared with the threshold.
    """

    __tablename__ = "online_evaluation"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(16))
    name: Mapped[str]
    eval_id: Mapped[str] = mapped_column(String(64))
    source: Mapped[dict[str, Any]]
    share: Mapped[float]
    cron: Mapped[str] = mapped_column(String(128))
    timezone: Mapped[str] = mapped_column(String(64))
    max_answers_per_day: Mapped[int]
    threshold: Mapped[dict[str, Any] | None]
    marked_at: Mapped[float]
    next_at: Mapped[float]
    paused_at: Mapped[float | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    value: Mapped[float | None]
    is_alerting: Mapped[bool]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    created_at: Mapped[float]

    __table_args__ = (
        Index("ix_online_evaluation_next", "next_at"),
        Index("ix_online_evaluation_project_created", "project_id", "created_at", "id"),
    )


class OnlineRound(Base):
    """A run of the eval of an online evaluation, with the same id, over answers of the time from `since` to `until`.

    The counts are null until the run has ended, and where it has not completed; `error` says why it has not.
    `criteria` counts by testing criterion, as in the run.
    """

    __tablename__ = "online_round"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    online_evaluation_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    eval_id: Mapped[str] = mapped_column(String(64))
    since: Mapped[float]
    until: Mapped[float]
    answers: Mapped[int]
    passed: Mapped[int | None]
    failed: Mapped[int | None]
    errored: Mapped[int | None]
    criteria: Mapped[list[Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]
    ended_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_online_round_evaluation_created", "online_evaluation_id", "created_at", "id"),
        Index("ix_online_round_ended", "ended_at"),
    )
