"""The log of deliveries, of an endpoint or of a job's own webhook: the same page for both."""

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.paging import Page, find, page
from api.presenters.webhook import DeliveryObject, show_delivery
from jobs import deliveries
from jobs.models import Delivery, Event


def delivery_page(
    session: Session, statement: Select[Delivery], *, after: str | None, limit: int, order: str
) -> Page[DeliveryObject]:
    """One page of the deliveries that `statement` selects, each with its attempts and the type of its event."""
    rows, more = find(session, statement, Delivery, after=after, limit=limit, order=order)
    log = deliveries.attempts(session, [row.id for row in rows])
    named = select(Event.id, Event.type).where(Event.id.in_([row.event_id for row in rows]))
    types = dict(session.execute(named).all())
    return page(rows, more, lambda row: show_delivery(row, types.get(row.event_id), log[row.id]))
