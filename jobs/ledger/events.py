"""Events: one row each, which feeds polling, SSE and webhooks. Written in the transaction of what happened."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.ids import new_id
from jobs.ledger import kinds
from jobs.ledger.tables import Job
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint

#: The types of events of no job that webhooks may subscribe to, as `kinds.event_types` has those of jobs.
OTHER_TYPES: Final = {
    "webhook_endpoint.disabled": "we_",
    "spend.alert.reached": "alert_",
    "model.alias.moved": "amove_",
    "model.alias.rolled_back": "amove_",
    "model.version.staged": "mmove_",
    "model.alias.shadow_silent": "amove_",
    "online_evaluation.alert": "onleval_",
    "online_evaluation.resolved": "onleval_",
}

_INSERT = insert(table_of(Event))
_ENABLED = select(WebhookEndpoint.id, WebhookEndpoint.event_types).where(
    WebhookEndpoint.project_id == bindparam("its_project"), WebhookEndpoint.disabled_at.is_(None)
)


def record(
    session: Session,
    *,
    subject_id: str,
    seq: int,
    project_id: str,
    type: str,  # noqa: A002 (the wire's name)
    data: dict[str, Any],
) -> Event:
    """Append an event and return its envelope. The caller has taken `seq` under the row lock of the subject."""
    row = {
        "subject_id": subject_id,
        "seq": seq,
        "id": new_id("evt_"),
        "project_id": project_id,
        "type": type,
        "data": data,
        "created_at": now(),
    }
    session.connection().execute(_INSERT, row)
    return Event(**row)


def fan_out(session: Session, event: Event, job: Job | None = None) -> None:
    """Enqueue `event` for each enabled endpoint that subscribed to it, and for the job's own webhook."""
    fan_out_all(session, [event], job)


def fan_out_all(session: Session, events: Sequence[Event], job: Job | None = None) -> None:
    """Enqueue several events of one project for each endpoint that subscribed to them."""
    types = {*kinds.event_types(), *OTHER_TYPES}
    subscribed = [event for event in events if event.type in types]
    enabled = session.execute(_ENABLED, {"its_project": subscribed[0].project_id}).all() if subscribed else ()
    rows = []
    for event in subscribed:
        rows += [_delivery(event, endpoint_id=endpoint_id) for endpoint_id, types in enabled if event.type in types]
        if job is not None and job.webhook_url:
            rows.append(_delivery(event, job_id=job.id))
    if rows:
        session.add_all(rows)


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
    """Return the events of one subject that follow `seq`, oldest first."""
    return session.scalars(
        select(Event).where(Event.subject_id == subject_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    ).all()
