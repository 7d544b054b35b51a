"""The events of a fine-tuning job, as clients read them. Each is written in the transaction of what it tells of."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.finetuning.tables import FinetuneEvent
from jobs.ids import new_id

PREFIX = "ftevent-"
Level = Literal["info", "warn", "error"]


def record(
    session: Session, job_id: str, message: str, *, level: Level = "info", data: Mapping[str, Any] | None = None
) -> None:
    """Append an event that tells `message`."""
    _add(session, job_id, message, level, "message", data)


def record_metrics(session: Session, job_id: str, message: str, data: Mapping[str, Any]) -> None:
    """Append the event of a training step."""
    _add(session, job_id, message, "info", "metrics", data)


def newest(
    session: Session, job_id: str, *, before: int | None, limit: int, kind: str | None = None
) -> Sequence[FinetuneEvent]:
    """Return the last events of a job before a position, the newest first: of all types, or of one."""
    rows = select(FinetuneEvent).where(FinetuneEvent.job_id == job_id)
    if kind is not None:
        rows = rows.where(FinetuneEvent.type == kind)
    if before is not None:
        rows = rows.where(FinetuneEvent.position < before)
    return session.scalars(rows.order_by(FinetuneEvent.position.desc()).limit(limit)).all()


def position(session: Session, job_id: str, event_id: str) -> int | None:
    """Return where an event of the job stands, or None when it has no such event."""
    conditions = FinetuneEvent.job_id == job_id, FinetuneEvent.id == event_id
    return session.scalar(select(FinetuneEvent.position).where(*conditions))


def count(session: Session, job_id: str, message: str) -> int:
    """Return how many events of a job have this message."""
    same = FinetuneEvent.job_id == job_id, FinetuneEvent.message == message
    return session.scalar(select(func.count()).select_from(FinetuneEvent).where(*same)) or 0


def _add(session: Session, job_id: str, message: str, level: Level, kind: str, data: Mapping[str, Any] | None) -> None:
    event = FinetuneEvent(id=new_id(PREFIX), job_id=job_id, created_at=now(), level=level, type=kind, message=message)
    if data is not None:  # JSON null is not NULL
        event.data = dict(data)
    session.add(event)
