"""Deliveries: one event for one receiver, sent at least once, under one `webhook-id`.

    pending ──claim──▶ (claimed by a worker) ──2xx──▶ delivered ─┐
       ▲                  │         │                            ├── replay ──▶ pending
       └── due again ◀────┘         └──schedule used up──▶ failed┘
           by the schedule, or at once when its worker died (revoke_claims)

Every write of an outcome is guarded by the claim's worker and epoch. 410, or nothing but failures for
`webhook_disable_seconds`, disables an endpoint; its pending deliveries are parked until it is enabled again.
Events that happen meanwhile are not enqueued for it, but `replay` enqueues them with `missed`. What is parked for an
endpoint that is deleted fails soon.

The oldest deliveries are claimed first, but a lane has at most its share, so that the backlog of one receiver does not
delay others. A lane is an endpoint, or the URL of one-off webhooks.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, case, exists, func, insert, literal_column, or_, select, tuple_, update
from sqlalchemy.engine import Row
from sqlalchemy.orm import Session, aliased

from jobs.clock import now
from jobs.db.engine import UNSEEN, WRITE_ROWS, affected_rows
from jobs.errors import Conflict, NotFound
from jobs.fleet.tables import Worker
from jobs.ids import new_id
from jobs.ledger import audit, events, measures, pauses
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.settings import Settings
from jobs.webhooks.sending import Outcome, body, signing_secrets
from jobs.webhooks.tables import Attempt, Delivery, Event, WebhookEndpoint

#: When a delivery to a disabled endpoint is due: the end of the year 9999.
PARKED_UNTIL = 253_402_300_799.0
#: The error of a delivery whose endpoint was deleted.
DELETED = "endpoint deleted"
#: Literal as in the partial indexes: neither database matches a bound parameter with an index's condition.
WAITING = and_(Delivery.state == literal_column("'pending'"), Delivery.worker_id.is_(None))
_HAS_FAILED = Delivery.state == literal_column("'failed'")
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
PARKED = and_(WAITING, Delivery.due_at >= PARKED_UNTIL)
_JITTER = 0.2
_RETRY_AFTER_MAX = 86_400.0
_GONE = 410
_LATE_SECONDS = 60.0  # a first attempt is due at once, apart from differences between clocks


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
    if pauses.paused(session).rests(Queue.WEBHOOKS, worker_id):
        return []
    room = _Room(_claims_by_lane(session, worker_id), per_endpoint, allowances or {})
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


def _set_aside(session: Session, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return the rows that can be sent. Park those of disabled endpoints, and fail those without a target."""
    sendable, parked, lost = [], [], []
    disabled = _still_disabled(session, {row.WebhookEndpoint.id for row in rows if _disabled(row)})
    for row in rows:
        if row.Event is None or (row.WebhookEndpoint is None and row.webhook_url is None):
            lost.append(row.id)
        elif row.endpoint_id in disabled:
            parked.append(row.id)
        else:
            sendable.append(row)
    _set(session, parked, due_at=PARKED_UNTIL)
    _set(session, lost, state="failed", error=DELETED)
    return sendable


def _disabled(row: Row[Any]) -> bool:
    return row.WebhookEndpoint is not None and row.WebhookEndpoint.disabled_at is not None


def _still_disabled(session: Session, ids: Collection[str]) -> set[str]:
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


def _set(session: Session, ids: Sequence[str], **values: Any) -> None:
    """Change deliveries that still wait: PostgreSQL has locked the rows, SQLite the database."""
    if ids:
        waiting = update(Delivery).where(Delivery.id.in_(ids), WAITING).values(values)
        session.execute(waiting, execution_options=UNSEEN)


@dataclass(frozen=True, slots=True)
class Selection:
    """The deliveries to replay: by ids, or by a span of time and states.

    `missed` adds events of that span that happened while the endpoint was disabled.
    """

    ids: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    states: tuple[str, ...] = (FAILED,)
    missed: bool = False


def next_delay(
    attempt: int, schedule: Sequence[float], retry_after: float | None, rng: Callable[[], float]
) -> float | None:
    """Return the seconds until the attempt that follows `attempt` failed ones, with 20 % of jitter.

    Return None after the last attempt. The receiver's Retry-After can only lengthen the delay, to at most a day.
    """
    if attempt >= len(schedule):
        return None
    delay = schedule[attempt] * (1 + _JITTER * (2 * rng() - 1))
    return max(delay, min(retry_after or 0.0, _RETRY_AFTER_MAX))


def record(
    session: Session,
    results: Sequence[tuple[DeliveryClaim, Outcome]],
    config: Settings,
    rng: Callable[[], float] = random.random,
) -> int:
    """Record attempts and their consequences; return how many claims were still valid."""
    endpoints = _locked(session, {claim.endpoint_id for claim, _ in results if claim.endpoint_id})
    happened_at = _valid_claims(session, [claim for claim, _ in results])
    at = now()
    valid = [(claim, outcome) for claim, outcome in results if (claim.id, claim.epoch) in happened_at]
    for claim, outcome in valid:
        if outcome.delivered:
            accepted = outcome.at + outcome.seconds
            measures.observe(session, measures.WEBHOOK, "", accepted - happened_at[claim.id, claim.epoch])
    _write(session, [_after(claim, outcome, config, rng) for claim, outcome in valid])
    _log(session, [_attempt(claim, outcome) for claim, outcome in valid])
    for claim, outcome in valid:
        endpoint = endpoints.get(claim.endpoint_id or "")
        if endpoint is not None and _concerns(endpoint, claim, outcome):
            _judge(session, endpoint, outcome, config, at)
    return len(valid)


def revoke_claims(session: Session, worker_id: str, keep: Collection[DeliveryClaim] = ()) -> int:
    """Revoke the claims of a dead worker, or those of a live one that are not in `keep`; return how many."""
    known = [(claim.id, claim.epoch) for claim in keep]
    condition = and_(Delivery.worker_id == worker_id, tuple_(Delivery.id, Delivery.epoch).not_in(known))
    return _update(session, condition, worker_id=None, epoch=Delivery.epoch + 1)


def release_claims(session: Session, claims: Sequence[DeliveryClaim]) -> None:
    """Release claims without an attempt. Claims that were revoked are left alone."""
    valid = [delivery_id for delivery_id, _ in _valid_claims(session, claims)]
    if valid:
        _update(session, Delivery.id.in_(valid), worker_id=None)


def unfinished(session: Session) -> dict[str, int]:
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


def orphans(session: Session) -> list[str]:
    """Return workers that have claimed deliveries but are not registered any more."""
    lost = ~exists().where(Worker.id == Delivery.worker_id)
    statement = select(Delivery.worker_id).where(Delivery.worker_id.is_not(None), lost).distinct()
    return [worker_id for worker_id in session.scalars(statement) if worker_id is not None]


def too_late(session: Session, config: Settings, limit: int) -> list[str]:
    """Return deliveries whose due time is too far ahead, because a clock was ahead when it was set."""
    first = now() + _LATE_SECONDS
    again = first + max(_RETRY_AFTER_MAX, (1 + _JITTER) * max(config.webhook_retry_seconds))
    latest = case((Delivery.attempts == 0, first), else_=again)
    # the first condition follows from the last, and can use an index
    late = and_(Delivery.due_at > first, Delivery.due_at < PARKED_UNTIL, Delivery.due_at > latest)
    return list(session.scalars(select(Delivery.id).where(WAITING, late).limit(limit)))


def bring_forward(session: Session, ids: Collection[str]) -> int:
    """Make deliveries due now, unless they were claimed or parked meanwhile; return how many."""
    return _update(session, and_(Delivery.id.in_(ids), WAITING, Delivery.due_at < PARKED_UNTIL), due_at=now())


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
    return unpark(session, _parked_for(session, endpoint))


def wrongly_parked(session: Session, limit: int) -> Sequence[str]:
    """Return deliveries that are still parked although their endpoint is enabled."""
    enabled = select(WebhookEndpoint.id).where(WebhookEndpoint.disabled_at.is_(None))
    return session.scalars(select(Delivery.id).where(PARKED, Delivery.endpoint_id.in_(enabled)).limit(limit)).all()


def unpark(session: Session, ids: Collection[str]) -> int:
    """Make parked deliveries due now; return how many.

    Claiming parks them again if the endpoint was disabled meanwhile.
    """
    return _update(session, and_(Delivery.id.in_(ids), PARKED), due_at=now())


def delete(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete an endpoint whose row is locked.

    Due deliveries fail when they are claimed, parked ones now or later (`lost`).
    """
    fail_lost(session, _parked_for(session, endpoint))
    session.delete(endpoint)


def _parked_for(session: Session, endpoint: WebhookEndpoint) -> Sequence[str]:
    """Return parked deliveries of an endpoint, as many as one transaction may change."""
    theirs = PARKED, Delivery.endpoint_id == endpoint.id
    return session.scalars(select(Delivery.id).where(*theirs).limit(WRITE_ROWS)).all()


def lost(session: Session, limit: int) -> Sequence[str]:
    """Return deliveries that are parked for deleted endpoints."""
    lost = ~exists().where(WebhookEndpoint.id == Delivery.endpoint_id)
    return session.scalars(select(Delivery.id).where(PARKED, lost).limit(limit)).all()


def fail_lost(session: Session, ids: Collection[str]) -> int:
    """Fail these deliveries if they are still parked; return how many."""
    return _update(session, and_(Delivery.id.in_(ids), PARKED), state=FAILED, error=DELETED)


def replay(
    session: Session, project_id: str, endpoint_id: str | None, selection: Selection, limit: int = 1000
) -> list[str]:
    """Make deliveries pending again, from the first attempt on, under their `webhook-id`; return their ids.

    Without an endpoint: one-off webhooks. At most `limit` at once.

    Raises NotFound for an unknown endpoint or id, and Conflict while the endpoint is disabled.
    """
    endpoint = _replayable(session, project_id, endpoint_id)
    of_endpoint = and_(Delivery.project_id == project_id, _of(endpoint_id))
    if selection.ids:
        selected = and_(of_endpoint, Delivery.id.in_(selection.ids))
        known = session.scalar(select(func.count()).select_from(Delivery).where(selected))
        if known != len(set(selection.ids)):
            raise NotFound("There is no such delivery.", param="ids")
    else:
        selected = and_(of_endpoint, Delivery.state.in_(selection.states), _within(Delivery.created_at, selection))
    free = select(Delivery.id).where(selected, Delivery.worker_id.is_(None)).order_by(Delivery.created_at)
    ids = list(session.scalars(free.limit(limit)))
    again = {"state": PENDING, "attempts": 0, "due_at": now(), "delivered_at": None}
    _update(session, and_(Delivery.id.in_(ids), Delivery.worker_id.is_(None)), **again)
    if endpoint is not None and selection.missed and not selection.ids:
        ids += _owe_missed(session, endpoint, selection, limit - len(ids))
    return ids


def attempts(session: Session, delivery_ids: Collection[str]) -> dict[str, list[Attempt]]:
    """Return the attempts of each delivery, oldest first. A replay counts its attempts from 1 again."""
    log: dict[str, list[Attempt]] = {delivery_id: [] for delivery_id in delivery_ids}
    for row in session.scalars(select(Attempt).where(Attempt.delivery_id.in_(delivery_ids)).order_by(Attempt.id)):
        log[row.delivery_id].append(row)
    return log


def _locked(session: Session, ids: Collection[str]) -> dict[str, WebhookEndpoint]:
    """Lock endpoints before deliveries and in the order of their ids, so that recorders do not deadlock."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(ids)).order_by(WebhookEndpoint.id)
    fresh = query.with_for_update().execution_options(populate_existing=True)
    return {endpoint.id: endpoint for endpoint in session.scalars(fresh)} if ids else {}


def _valid_claims(session: Session, claims: Sequence[DeliveryClaim]) -> dict[tuple[str, int], float]:
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


def _after(claim: DeliveryClaim, outcome: Outcome, config: Settings, rng: Callable[[], float]) -> dict[str, Any]:
    """Return the values of a delivery after an attempt. The delay counts from the attempt's end."""
    ended = outcome.at + outcome.seconds
    delay = next_delay(claim.attempt, config.webhook_retry_seconds, outcome.retry_after, rng)
    over = delay is None or (outcome.status_code == _GONE and claim.endpoint_id is None)
    return {
        "claim_id": claim.id,
        "claim_epoch": claim.epoch,
        "worker_id": None,
        "attempts": claim.attempt,
        "status_code": outcome.status_code,
        "error": outcome.error,
        "state": DELIVERED if outcome.delivered else FAILED if over else PENDING,
        "delivered_at": ended if outcome.delivered else None,
        "due_at": ended + (delay or 0.0),
    }


def _concerns(endpoint: WebhookEndpoint, claim: DeliveryClaim, outcome: Outcome) -> bool:
    """Return whether the attempt was made to the endpoint as it is now: a late 410 must not undo the owner's change."""
    return claim.url == endpoint.url and outcome.at >= (endpoint.updated_at or 0.0)


def _judge(session: Session, endpoint: WebhookEndpoint, outcome: Outcome, config: Settings, at: float) -> None:
    """Update an endpoint after an attempt, and disable it if it has failed for too long."""
    if outcome.delivered:
        endpoint.failing_since = None
        return
    endpoint.failing_since = endpoint.failing_since or at
    if endpoint.disabled_at is not None:
        return
    if outcome.status_code == _GONE:
        disable(session, endpoint, "gone")
    elif at - endpoint.failing_since >= config.webhook_disable_seconds:
        disable(session, endpoint, "failing")


def _write(session: Session, rows: list[dict[str, Any]]) -> None:
    """Write many deliveries by one statement, each guarded by its epoch; as a Core statement, which costs a tenth."""
    table = Delivery.__table__
    guard = and_(table.c.id == bindparam("claim_id"), table.c.epoch == bindparam("claim_epoch"))
    columns = ("worker_id", "attempts", "status_code", "error", "state", "delivered_at", "due_at")
    if rows:
        statement = update(table).where(guard).values({name: bindparam(name) for name in columns})  # type: ignore[arg-type]
        session.connection().execute(statement, rows)


def _log(session: Session, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.connection().execute(insert(Attempt.__table__), rows)  # type: ignore[arg-type]


def _update(session: Session, where: Any, **values: Any) -> int:
    return affected_rows(session, update(Delivery).where(where).values(values), UNSEEN)


def _attempt(claim: DeliveryClaim, outcome: Outcome) -> dict[str, Any]:
    return {
        "delivery_id": claim.id,
        "n": claim.attempt,
        "at": outcome.at,
        "seconds": outcome.seconds,
        "status_code": outcome.status_code,
        "error": outcome.error,
    }


def _audit(session: Session, endpoint: WebhookEndpoint, action: str, actor: str, reason: str | None) -> None:
    audit.record(
        session,
        actor=actor,
        action=action,
        target=endpoint.id,
        project_id=endpoint.project_id,
        details={"reason": reason} if reason else None,
    )


def _of(endpoint_id: str | None):  # type: ignore[no-untyped-def]
    return Delivery.endpoint_id.is_(None) if endpoint_id is None else Delivery.endpoint_id == endpoint_id


def _within(column: Any, selection: Selection):  # type: ignore[no-untyped-def]
    since, until = selection.since or 0.0, selection.until if selection.until is not None else PARKED_UNTIL
    return column.between(since, until)


def _replayable(session: Session, project_id: str, endpoint_id: str | None) -> WebhookEndpoint | None:
    if endpoint_id is None:
        return None
    # locked, so that concurrent replays do not add missed events twice
    endpoint = session.get(WebhookEndpoint, endpoint_id, with_for_update=True, populate_existing=True)
    if endpoint is None or endpoint.project_id != project_id:
        raise NotFound("There is no such webhook endpoint.")
    if endpoint.disabled_at is not None:
        raise Conflict("This webhook endpoint is disabled; update it to enable it again.")
    return endpoint


def _owe_missed(session: Session, endpoint: WebhookEndpoint, selection: Selection, limit: int) -> list[str]:
    has_delivery = exists().where(Delivery.event_id == Event.id, Delivery.endpoint_id == endpoint.id)
    missed = select(Event).where(
        Event.project_id == endpoint.project_id,
        Event.type.in_(endpoint.event_types),
        _within(Event.created_at, selection),
        ~has_delivery,
    )
    made = [
        Delivery(
            id=new_id("wh_"),
            project_id=endpoint.project_id,
            event_id=event.id,
            endpoint_id=endpoint.id,
            due_at=now(),
            created_at=event.created_at,
        )
        for event in session.scalars(missed.order_by(Event.created_at).limit(limit))
    ]
    session.add_all(made)
    return [delivery.id for delivery in made]
