"""The outcomes of attempts: what becomes of a delivery, and of its endpoint, and when the next attempt is due."""

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from sqlalchemy import and_, bindparam, case, insert, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.ledger import measures
from jobs.settings import Settings
from jobs.webhooks.claims import DeliveryClaim, valid_claims
from jobs.webhooks.deliveries import DELIVERED, FAILED, PARKED_UNTIL, PENDING, WAITING, change
from jobs.webhooks.sending import AttemptOutcome
from jobs.webhooks.tables import Attempt, Delivery, WebhookEndpoint
from jobs.webhooks.webhook_endpoints import disable

_JITTER = 0.2
#: The time of nothing but failures after which an endpoint is disabled.
MAX_FAILING_SECONDS: Final = 5 * 86_400.0
_RETRY_AFTER_MAX = 86_400.0
_GONE = 410
_LATE_SECONDS = 60.0  # a first attempt is due at once, apart from differences between clocks


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
    results: Sequence[tuple[DeliveryClaim, AttemptOutcome]],
    config: Settings,
    rng: Callable[[], float] = random.random,
) -> int:
    """Record attempts and their consequences; return how many claims were still valid."""
    endpoints = _lock_endpoints(session, {claim.endpoint_id for claim, _ in results if claim.endpoint_id})
    happened_at = valid_claims(session, [claim for claim, _ in results])
    at = now()
    valid = [(claim, outcome) for claim, outcome in results if (claim.id, claim.epoch) in happened_at]
    for claim, outcome in valid:
        if outcome.delivered:
            accepted = outcome.at + outcome.seconds
            measures.observe(session, measures.WEBHOOK, "", accepted - happened_at[claim.id, claim.epoch])
    _write(session, [_next_values(claim, outcome, config, rng) for claim, outcome in valid])
    _log(session, [_attempt(claim, outcome) for claim, outcome in valid])
    for claim, outcome in valid:
        endpoint = endpoints.get(claim.endpoint_id or "")
        if endpoint is not None and _concerns(endpoint, claim, outcome):
            _judge(session, endpoint, outcome, at)
    return len(valid)


def overdue_deliveries(session: Session, config: Settings, limit: int) -> list[str]:
    """Return deliveries whose due time is too far ahead, because a clock was ahead when it was set."""
    first = now() + _LATE_SECONDS
    again = first + max(_RETRY_AFTER_MAX, (1 + _JITTER) * max(config.webhook_retry_seconds))
    latest = case((Delivery.attempts == 0, first), else_=again)
    # the first condition follows from the last, and can use an index
    late = and_(Delivery.due_at > first, Delivery.due_at < PARKED_UNTIL, Delivery.due_at > latest)
    return list(session.scalars(select(Delivery.id).where(WAITING, late).limit(limit)))


def bring_forward(session: Session, ids: Collection[str]) -> int:
    """Make deliveries due now, unless they were claimed or parked meanwhile; return how many."""
    return change(session, and_(Delivery.id.in_(ids), WAITING, Delivery.due_at < PARKED_UNTIL), due_at=now())


def _lock_endpoints(session: Session, ids: Collection[str]) -> dict[str, WebhookEndpoint]:
    """Lock endpoints before deliveries and in the order of their ids, so that recorders do not deadlock."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(ids)).order_by(WebhookEndpoint.id)
    fresh = query.with_for_update().execution_options(populate_existing=True)
    return {endpoint.id: endpoint for endpoint in session.scalars(fresh)} if ids else {}


def _next_values(
    claim: DeliveryClaim, outcome: AttemptOutcome, config: Settings, rng: Callable[[], float]
) -> dict[str, Any]:
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


def _concerns(endpoint: WebhookEndpoint, claim: DeliveryClaim, outcome: AttemptOutcome) -> bool:
    """Return whether the attempt was made to the endpoint as it is now: a late 410 must not undo the owner's change."""
    return claim.url == endpoint.url and outcome.at >= (endpoint.updated_at or 0.0)


def _judge(session: Session, endpoint: WebhookEndpoint, outcome: AttemptOutcome, at: float) -> None:
    """Update an endpoint after an attempt, and disable it if it has failed for too long."""
    if outcome.delivered:
        endpoint.failing_since = None
        return
    endpoint.failing_since = endpoint.failing_since or at
    if endpoint.disabled_at is not None:
        return
    if outcome.status_code == _GONE:
        disable(session, endpoint, "gone")
    elif at - endpoint.failing_since >= MAX_FAILING_SECONDS:
        disable(session, endpoint, "failing")


def _write(session: Session, rows: list[dict[str, Any]]) -> None:
    """Write many deliveries by one statement, each guarded by its epoch; as a Core statement, which costs a tenth."""
    table = table_of(Delivery)
    guard = and_(table.c.id == bindparam("claim_id"), table.c.epoch == bindparam("claim_epoch"))
    columns = ("worker_id", "attempts", "status_code", "error", "state", "delivered_at", "due_at")
    if rows:
        statement = update(table).where(guard).values({name: bindparam(name) for name in columns})
        session.connection().execute(statement, rows)


def _log(session: Session, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.connection().execute(insert(table_of(Attempt)), rows)


def _attempt(claim: DeliveryClaim, outcome: AttemptOutcome) -> dict[str, Any]:
    return {
        "delivery_id": claim.id,
        "n": claim.attempt,
        "at": outcome.at,
        "seconds": outcome.seconds,
        "status_code": outcome.status_code,
        "error": outcome.error,
    }
