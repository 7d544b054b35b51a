"""Which deliveries are next, and the claim on them.

Oldest first, but a lane takes no more than its share, so that a receiver's backlog stands in nobody's way. A lane
is an endpoint, or the URL of one-off webhooks.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, literal_column, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.ledger import pauses
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.webhooks.sending import body, signing_secrets
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint

#: When a delivery to a disabled endpoint is due: the end of the year 9999.
HELD = 253_402_300_799.0
#: Why a delivery failed whose endpoint is gone.
DELETED = "endpoint deleted"
#: As the partial indexes spell it: neither SQLite nor PostgreSQL matches a bound parameter with an index's condition.
WAITING = and_(Delivery.state == literal_column("'pending'"), Delivery.worker_id.is_(None))


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """The right to make one attempt, and all it takes."""

    id: str
    epoch: int
    worker_id: str
    endpoint_id: str | None
    lane: str
    url: str
    secrets: tuple[str, ...]
    body: bytes
    attempt: int
    sequence: int
    project_id: str = ""


def claim_due(
    session: Session,
    worker_id: str,
    limit: int = 64,
    per_endpoint: int = 2,
    allowances: Mapping[str, int] | None = None,
) -> list[DeliveryClaim]:
    """Take due deliveries, oldest first, so that this worker holds at most `per_endpoint` of a lane.

    `allowances` replace that number for single lanes. None while the queue or the worker is paused: what is owed stays
    owed, with all its attempts.
    """
    if pauses.paused(session).rests(Queue.WEBHOOKS, worker_id):
        return []
    room = _Room(_held(session, worker_id), per_endpoint, allowances or {})
    claims: list[DeliveryClaim] = []
    at = now()
    while len(claims) < limit:
        rows = session.execute(_due(at, room.full(), limit)).all()
        if not rows:
            break
        taken = [row for row in _set_aside(session, rows) if room.take(_lane(row))]
        taken = taken[: limit - len(claims)]
        _set(session, [row.id for row in taken], worker_id=worker_id, epoch=Delivery.epoch + 1)
        claims += [_claim(row, worker_id, at) for row in taken]
    return claims


class _Room:
    """What each lane may still take."""

    def __init__(self, held: Counter[str], usual: int, allowances: Mapping[str, int]) -> None:
        self._held = held
        self._usual = usual
        self._allowances = allowances

    def full(self) -> set[str]:
        return {lane for lane in {*self._held, *self._allowances} if not self._left(lane)}

    def take(self, lane: str) -> bool:
        """Take one place, where there is one."""
        left = self._left(lane)
        self._held[lane] += left
        return left

    def _left(self, lane: str) -> bool:
        return self._held[lane] < self._allowances.get(lane, self._usual)


def _held(session: Session, worker_id: str) -> Counter[str]:
    """How many deliveries of each lane a worker holds."""
    lane = func.coalesce(Delivery.endpoint_id, Job.webhook_url)
    counts = session.execute(
        select(lane, func.count())
        .select_from(Delivery)
        .outerjoin(Job, Job.id == Delivery.job_id)
        .where(Delivery.worker_id == worker_id)
        .group_by(lane)
    )
    return Counter({name: count for name, count in counts})  # noqa: C416 (rows are not pairs to a type checker)


def _due(at: float, full: Collection[str], limit: int):  # type: ignore[no-untyped-def]
    """The oldest due deliveries outside full lanes, with what each needs. Others' locked rows are passed over."""
    elsewhere = or_(Delivery.endpoint_id.is_(None), Delivery.endpoint_id.not_in(full))  # decided before any join
    return (
        select(
            Delivery.id,
            Delivery.epoch,
            Delivery.attempts,
            Delivery.endpoint_id,
            Event,
            WebhookEndpoint,
            Job.webhook_url,
            Job.webhook_secret,
        )
        .outerjoin(Event, Event.id == Delivery.event_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == Delivery.endpoint_id)
        .outerjoin(Job, Job.id == Delivery.job_id)
        .where(WAITING, Delivery.due_at <= at, elsewhere, func.coalesce(Job.webhook_url, "").not_in(full))
        .order_by(Delivery.due_at)
        .limit(limit)
        .with_for_update(of=Delivery, skip_locked=True)
    )


def _set_aside(session: Session, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """The rows that can be sent. Those of disabled endpoints are held, those that lead nowhere fail."""
    sendable, held, lost = [], [], []
    disabled = _still_disabled(session, {row.WebhookEndpoint.id for row in rows if _disabled(row)})
    for row in rows:
        if row.Event is None or (row.WebhookEndpoint is None and row.webhook_url is None):
            lost.append(row.id)
        elif row.endpoint_id in disabled:
            held.append(row.id)
        else:
            sendable.append(row)
    _set(session, held, due_at=HELD)
    _set(session, lost, state="failed", error=DELETED)
    return sendable


def _disabled(row: Row[Any]) -> bool:
    return row.WebhookEndpoint is not None and row.WebhookEndpoint.disabled_at is not None


def _still_disabled(session: Session, ids: Collection[str]) -> set[str]:
    """Locked, so that `enable` can't release an endpoint's deliveries just before they are held."""
    if not ids:
        return set()
    query = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(ids)).order_by(WebhookEndpoint.id)
    fresh = query.with_for_update(read=True).execution_options(populate_existing=True)
    return {endpoint.id for endpoint in session.scalars(fresh) if endpoint.disabled_at is not None}


def _lane(row: Row[Any]) -> str:
    return str(row.endpoint_id or row.webhook_url)


def _claim(row: Row[Any], worker_id: str, at: float) -> DeliveryClaim:
    endpoint: WebhookEndpoint | None = row.WebhookEndpoint
    if endpoint is not None:
        url, secrets = endpoint.url, signing_secrets(endpoint, at)
    else:
        url, secrets = row.webhook_url, (row.webhook_secret,) if row.webhook_secret else ()
    return DeliveryClaim(
        id=row.id,
        epoch=row.epoch + 1,
        worker_id=worker_id,
        endpoint_id=row.endpoint_id,
        lane=_lane(row),
        url=url,
        secrets=secrets,
        body=body(row.Event),
        attempt=row.attempts + 1,
        sequence=row.Event.seq,
        project_id=row.Event.project_id or "",
    )


def _set(session: Session, ids: Sequence[str], **values: Any) -> None:
    """Only what still waits: on PostgreSQL the rows are locked, on SQLite the database is."""
    if ids:
        waiting = update(Delivery).where(Delivery.id.in_(ids), WAITING).values(values)
        session.execute(waiting, execution_options={"synchronize_session": False})
