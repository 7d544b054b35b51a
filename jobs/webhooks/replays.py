"""Replay deliveries: make them pending again, and add those of events that happened while the endpoint was disabled."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.clock import now
from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.webhooks.deliveries import FAILED, PARKED_UNTIL, PENDING, change
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint


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


def replay(
    session: Session, project_id: str, endpoint_id: str | None, selection: Selection, limit: int = 1000
) -> list[str]:
    """Make deliveries pending again, from the first attempt on, under their `webhook-id`; return their ids.

    Without an endpoint: one-off webhooks. At most `limit` at once.

    Raises NotFound for an unknown endpoint or id, and Conflict while the endpoint is disabled.
    """
    endpoint = _replayable(session, project_id, endpoint_id)
    of_endpoint = and_(Delivery.project_id == project_id, _is_of(endpoint_id))
    if selection.ids:
        selected = and_(of_endpoint, Delivery.id.in_(selection.ids))
        known = session.scalar(select(func.count()).select_from(Delivery).where(selected))
        if known != len(set(selection.ids)):
            raise NotFound("There is no such delivery.", param="ids")
    else:
        selected = and_(of_endpoint, Delivery.state.in_(selection.states), _is_within(Delivery.created_at, selection))
    free = select(Delivery.id).where(selected, Delivery.worker_id.is_(None)).order_by(Delivery.created_at)
    ids = list(session.scalars(free.limit(limit)))
    again = {"state": PENDING, "attempts": 0, "due_at": now(), "delivered_at": None}
    change(session, and_(Delivery.id.in_(ids), Delivery.worker_id.is_(None)), **again)
    if endpoint is not None and selection.missed and not selection.ids:
        ids += _enqueue_missed(session, endpoint, selection, limit - len(ids))
    return ids


def _is_of(endpoint_id: str | None) -> ColumnElement[bool]:
    return Delivery.endpoint_id.is_(None) if endpoint_id is None else Delivery.endpoint_id == endpoint_id


def _is_within(column: InstrumentedAttribute[float], selection: Selection) -> ColumnElement[bool]:
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


def _enqueue_missed(session: Session, endpoint: WebhookEndpoint, selection: Selection, limit: int) -> list[str]:
    has_delivery = exists().where(Delivery.event_id == Event.id, Delivery.endpoint_id == endpoint.id)
    missed = select(Event).where(
        Event.project_id == endpoint.project_id,
        Event.type.in_(endpoint.event_types),
        _is_within(Event.created_at, selection),
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
