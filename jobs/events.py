"""Events: one row each, feeding polling, SSE and webhooks. Written in the transaction of what happened."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.ids import new_id
from jobs.models import Delivery, Event, Job, WebhookEndpoint
from jobs.payloads import EVENT_TYPES


def record(
    session: Session,
    *,
    subject_id: str,
    seq: int,
    project_id: str,
    type: str,  # noqa: A002 (the wire's name)
    data: dict[str, Any],
) -> Event:
    """Append an event; `seq` was taken by the caller under the subject's row lock."""
    event = Event(
        subject_id=subject_id,
        seq=seq,
        id=new_id("evt_"),
        project_id=project_id,
        type=type,
        data=data,
        created_at=now(),
    )
    session.add(event)
    return event


def fan_out(session: Session, event: Event, job: Job | None = None) -> None:
    """Owe `event` to each enabled endpoint that wants it, and to the job's own webhook."""
    fan_out_all(session, [event], job)


def fan_out_all(session: Session, events: Sequence[Event], job: Job | None = None) -> None:
    """The same of several events, of one project."""
    told = [event for event in events if event.type in EVENT_TYPES]
    endpoints = _enabled(session, told[0].project_id) if told else ()
    for event in told:
        wanted = (endpoint.id for endpoint in endpoints if event.type in endpoint.event_types)
        session.add_all(_delivery(event, endpoint_id=endpoint_id) for endpoint_id in wanted)
        if job is not None and job.webhook_url:
            session.add(_delivery(event, job_id=job.id))


def _enabled(session: Session, project_id: str) -> Sequence[WebhookEndpoint]:
    mine = WebhookEndpoint.project_id == project_id, WebhookEndpoint.disabled_at.is_(None)
    return session.scalars(select(WebhookEndpoint).where(*mine)).all()


def _delivery(event: Event, *, endpoint_id: str | None = None, job_id: str | None = None) -> Delivery:
    return Delivery(
        id=new_id("wh_"),
        project_id=event.project_id,
        event_id=event.id,
        endpoint_id=endpoint_id,
        job_id=job_id,
        due_at=event.created_at,
        created_at=event.created_at,
    )


def after(session: Session, subject_id: str, seq: int, limit: int) -> Sequence[Event]:
    """The events of one subject that follow `seq`, oldest first."""
    return session.scalars(
        select(Event).where(Event.subject_id == subject_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    ).all()
