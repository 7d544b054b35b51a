"""Claims on deliveries: a claim is the right to make one attempt.

The oldest deliveries are claimed first, but a lane has at most its share, so that the backlog of one receiver does not
delay others. A lane is an endpoint, or the URL of one-off webhooks.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, exists, func, or_, select, tuple_
from sqlalchemy.engine import Row
from sqlalchemy.orm import Session, aliased

from jobs.clock import now
from jobs.fleet.tables import Worker
from jobs.ledger import pauses
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.webhooks.deliveries import DELETED, PARKED_UNTIL, WAITING, change
from jobs.webhooks.sending import body, signing_secrets
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """The right to make one attempt, with everything that it needs."""

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
    request_id: str | None = None  # of the call that created the job that the event is about


def claim_due(
    session: Session,
    worker_id: str,
    limit: int = 64,
    per_endpoint: int = 2,
    allowances: Mapping[str, int] | None = None,
) -> list[DeliveryClaim]:
    """Claim due deliveries, oldest first, so that this worker has at most `per_endpoint` of a lane.

    `allowances` replace that number for single lanes. Claims none while the queue or the worker is paused: pending
    deliveries keep all their attempts.
    """
    if pauses.current_pauses(session).rests(Queue.WEBHOOKS, worker_id):
        return []
    room = _Room(_claims_by_lane(session, worker_id), per_endpoint, allowances or {})
    claims: list[DeliveryClaim] = []
    at = now()
    while len(claims) < limit:
        rows = session.execute(_due(at, room.full(), limit)).all()
        if not rows:
            break
        taken = [row for row in _select_sendable(session, rows) if room.take(_lane(row))]
        taken = taken[: limit - len(claims)]
        _change_waiting(session, [row.id for row in taken], worker_id=worker_id, epoch=Delivery.epoch + 1)
        claims += [_claim(row, worker_id, at) for row in taken]
    return claims


class _Room:
    """The number of deliveries that each lane may still take."""

    def __init__(self, claimed: Counter[str], usual: int, allowances: Mapping[str, int]) -> None:
        self._claimed = claimed
        self._usual = usual
        self._allowances = allowances

    def full(self) -> set[str]:
        return {lane for lane in {*self._claimed, *self._allowances} if not self._left(lane)}

    def take(self, lane: str) -> bool:
        """Take one if the lane has room; return whether it had."""
        left = self._left(lane)
        self._claimed[lane] += left
        return left

    def _left(self, lane: str) -> bool:
        return self._claimed[lane] < self._allowances.get(lane, self._usual)


def _claims_by_lane(session: Session, worker_id: str) -> Counter[str]:
    """Return how many deliveries of each lane a worker has claimed."""
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
    """Return the query of the oldest due deliveries outside full lanes, with what an attempt needs.

    Rows that others have locked are skipped.
    """
    subject = aliased(Job)
    elsewhere = or_(Delivery.endpoint_id.is_(None), Delivery.endpoint_id.not_in(full))  # evaluated before any join
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
            subject.request_id,
        )
        .outerjoin(Event, Event.id == Delivery.event_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == Delivery.endpoint_id)
        .outerjoin(Job, Job.id == Delivery.job_id)
        .outerjoin(subject, subject.id == Event.subject_id)
        .where(WAITING, Delivery.due_at <= at, elsewhere, func.coalesce(Job.webhook_url, "").not_in(full))
        .order_by(Delivery.due_at)
        .limit(limit)
        .with_for_update(of=Delivery, skip_locked=True)
    )


def _select_sendable(session: Session, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return the rows that can be sent. Park those of disabled endpoints, and fail those without a target."""
    sendable, parked, lost = [], [], []
    disabled = _lock_disabled(session, {row.WebhookEndpoint.id for row in rows if _disabled(row)})
    for row in rows:
        if row.Event is None or (row.WebhookEndpoint is None and row.webhook_url is None):
            lost.append(row.id)
        elif row.endpoint_id in disabled:
            parked.append(row.id)
        else:
            sendable.append(row)
    _change_waiting(session, parked, due_at=PARKED_UNTIL)
    _change_waiting(session, lost, state="failed", error=DELETED)
    return sendable


def _disabled(row: Row[Any]) -> bool:
    return row.WebhookEndpoint is not None and row.WebhookEndpoint.disabled_at is not None


def _lock_disabled(session: Session, ids: Collection[str]) -> set[str]:
    """Return the ids of the endpoints that are still disabled, and lock the endpoints of `ids`.

    The lock keeps `enable` from running just before the deliveries are parked.
    """
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
        request_id=row.request_id,
    )


def _change_waiting(session: Session, ids: Sequence[str], **values: Any) -> None:
    """Change deliveries that still wait: PostgreSQL has locked the rows, SQLite the database."""
    if ids:
        change(session, and_(Delivery.id.in_(ids), WAITING), **values)


def revoke_claims(session: Session, worker_id: str, keep: Collection[DeliveryClaim] = ()) -> int:
    """Revoke the claims of a dead worker, or those of a live one that are not in `keep`; return how many."""
    known = [(claim.id, claim.epoch) for claim in keep]
    condition = and_(Delivery.worker_id == worker_id, tuple_(Delivery.id, Delivery.epoch).not_in(known))
    return change(session, condition, worker_id=None, epoch=Delivery.epoch + 1)


def release_claims(session: Session, claims: Sequence[DeliveryClaim]) -> None:
    """Release claims without an attempt. Claims that were revoked are left alone."""
    valid = [delivery_id for delivery_id, _ in valid_claims(session, claims)]
    if valid:
        change(session, Delivery.id.in_(valid), worker_id=None)


def orphans(session: Session) -> list[str]:
    """Return workers that have claimed deliveries but are not registered any more."""
    lost = ~exists().where(Worker.id == Delivery.worker_id)
    statement = select(Delivery.worker_id).where(Delivery.worker_id.is_not(None), lost).distinct()
    return [worker_id for worker_id in session.scalars(statement) if worker_id is not None]


def valid_claims(session: Session, claims: Sequence[DeliveryClaim]) -> dict[tuple[str, int], float]:
    """Return the valid claims as (id, epoch), with the times of their events.

    Their rows are locked until the caller's transaction ends.
    """
    if not claims:
        return {}
    rows = select(Delivery.id, Delivery.epoch, Delivery.worker_id, Delivery.created_at).where(
        Delivery.id.in_([claim.id for claim in claims]), Delivery.worker_id.is_not(None)
    )
    happened_at = {(id_, epoch, worker): at for id_, epoch, worker, at in session.execute(rows.with_for_update())}
    valid = [claim for claim in claims if (claim.id, claim.epoch, claim.worker_id) in happened_at]
    return {(claim.id, claim.epoch): happened_at[claim.id, claim.epoch, claim.worker_id] for claim in valid}
