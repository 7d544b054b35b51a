"""Deliveries: one event for one receiver, sent at least once, under one `webhook-id`.

    pending ──claim──▶ (claimed by a worker) ──2xx──▶ delivered ─┐
       ▲                  │         │                            ├── replay ──▶ pending
       └── due again ◀────┘         └──schedule used up──▶ failed┘
           by the schedule, or at once when its worker died (revoke_claims)

Every write of an outcome is guarded by the claim's worker and epoch. 410, or nothing but failures for five days,
disables an endpoint; its pending deliveries are parked until it is enabled again. Events that happen meanwhile are not
enqueued for it, but `replay` enqueues them with `missed`. What is parked for an endpoint that is deleted fails soon.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import and_, func, literal_column, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count
from jobs.webhooks.tables import Attempt, Delivery

#: When a delivery to a disabled endpoint is due: the end of the year 9999.
PARKED_UNTIL = 253_402_300_799.0
#: The error of a delivery whose endpoint was deleted.
DELETED = "endpoint deleted"
#: Literal as in the partial indexes: neither database matches a bound parameter with an index's condition.
WAITING = and_(Delivery.state == literal_column("'pending'"), Delivery.worker_id.is_(None))
_HAS_FAILED = Delivery.state == literal_column("'failed'")
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
PARKED = and_(WAITING, Delivery.due_at >= PARKED_UNTIL)


def count_unfinished(session: Session) -> dict[str, int]:
    """Return how many deliveries are pending and how many have failed. Those that were delivered are not read."""
    waiting, claimed, failed = (
        session.scalar(select(func.count()).select_from(Delivery).where(which)) or 0
        for which in (WAITING, Delivery.worker_id.is_not(None), _HAS_FAILED)
    )
    return {PENDING: waiting + claimed, FAILED: failed}


def due_count(session: Session) -> int:
    """Return how many deliveries wait and are due."""
    return session.scalar(select(func.count()).where(WAITING, Delivery.due_at <= now())) or 0


def next_due(session: Session) -> float | None:
    """Return when the first waiting delivery is due; None if none waits."""
    return session.scalar(select(func.min(Delivery.due_at)).where(WAITING))


def attempts(session: Session, delivery_ids: Collection[str]) -> dict[str, list[Attempt]]:
    """Return the attempts of each delivery, oldest first. A replay counts its attempts from 1 again."""
    log: dict[str, list[Attempt]] = {delivery_id: [] for delivery_id in delivery_ids}
    for row in session.scalars(select(Attempt).where(Attempt.delivery_id.in_(delivery_ids)).order_by(Attempt.id)):
        log[row.delivery_id].append(row)
    return log


def change(session: Session, where: Any, **values: Any) -> int:
    """Change the deliveries that meet the condition `where`; return how many."""
    return execute_and_count(session, update(Delivery).where(where).values(values), UNSEEN)
