"""Disable, enable and delete webhook endpoints, and with them park, unpark and fail their deliveries."""

from collections.abc import Collection, Sequence

from sqlalchemy import and_, exists, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import WRITE_ROWS
from jobs.ledger import audit, events
from jobs.webhooks.deliveries import DELETED, FAILED, PARKED, change
from jobs.webhooks.tables import Delivery, WebhookEndpoint


def disable(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    """Disable an endpoint whose row the caller has locked, and record the event. Nothing is deleted."""
    endpoint.disabled_at, endpoint.disabled_reason = now(), reason
    endpoint.event_seq += 1
    session.flush()
    event = events.record(
        session,
        subject_id=endpoint.id,
        seq=endpoint.event_seq,
        project_id=endpoint.project_id,
        type="webhook_endpoint.disabled",
        data={"id": endpoint.id},
    )
    session.flush()
    events.fan_out(session, event)
    _audit(session, endpoint, "webhook_endpoint.disable", "webhooks", reason)


def enable(session: Session, endpoint: WebhookEndpoint, *, actor: str) -> int:
    """Enable an endpoint, and unpark a first page of its deliveries; return how many. `unpark` does the rest."""
    if endpoint.disabled_at is None:
        return 0
    endpoint.disabled_at = endpoint.disabled_reason = endpoint.failing_since = None
    endpoint.updated_at = now()
    session.flush()
    _audit(session, endpoint, "webhook_endpoint.enable", actor, None)
    return unpark(session, _parked_ids(session, endpoint))


def deliveries_to_resume(session: Session, limit: int) -> Sequence[str]:
    """Return deliveries that are still parked although their endpoint is enabled."""
    enabled = select(WebhookEndpoint.id).where(WebhookEndpoint.disabled_at.is_(None))
    return session.scalars(select(Delivery.id).where(PARKED, Delivery.endpoint_id.in_(enabled)).limit(limit)).all()


def unpark(session: Session, ids: Collection[str]) -> int:
    """Make parked deliveries due now; return how many.

    Claiming parks them again if the endpoint was disabled meanwhile.
    """
    return change(session, and_(Delivery.id.in_(ids), PARKED), due_at=now())


def delete(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete an endpoint whose row is locked.

    Due deliveries fail when they are claimed, parked ones now or later (`lost`).
    """
    fail_parked(session, _parked_ids(session, endpoint))
    session.delete(endpoint)


def _parked_ids(session: Session, endpoint: WebhookEndpoint) -> Sequence[str]:
    """Return parked deliveries of an endpoint, as many as one transaction may change."""
    theirs = PARKED, Delivery.endpoint_id == endpoint.id
    return session.scalars(select(Delivery.id).where(*theirs).limit(WRITE_ROWS)).all()


def deliveries_to_fail(session: Session, limit: int) -> Sequence[str]:
    """Return deliveries that are parked for deleted endpoints."""
    lost = ~exists().where(WebhookEndpoint.id == Delivery.endpoint_id)
    return session.scalars(select(Delivery.id).where(PARKED, lost).limit(limit)).all()


def fail_parked(session: Session, ids: Collection[str]) -> int:
    """Fail these deliveries if they are still parked; return how many."""
    return change(session, and_(Delivery.id.in_(ids), PARKED), state=FAILED, error=DELETED)


def _audit(session: Session, endpoint: WebhookEndpoint, action: str, actor: str, reason: str | None) -> None:
    audit.record(
        session,
        actor=actor,
        action=action,
        target=endpoint.id,
        project_id=endpoint.project_id,
        details={"reason": reason} if reason else None,
    )
