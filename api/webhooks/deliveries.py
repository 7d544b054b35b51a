"""The log of deliveries, of an endpoint or of a job's own webhook: the same page for both."""

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.http.paging import Page, find, page
from api.webhooks.schemas import DeliveryObject, show_delivery
from jobs.webhooks import deliveries
from jobs.webhooks.tables import Delivery, Event


def delivery_page(
    session: Session, mine: Select[Delivery], *, after: str | None, limit: int, order: str, state: str | None = None
) -> Page[DeliveryObject]:
    """One page of the deliveries that are `mine`, in this `state`, each with its attempts and its event's type.

    `after` may have left that state since it was listed.
    """
    wanted = mine if state is None else mine.where(Delivery.state == state)
    rows, more = find(session, wanted, Delivery, after=after, limit=limit, order=order, among=mine)
    log = deliveries.attempts(session, [row.id for row in rows])
    named = select(Event.id, Event.type).where(Event.id.in_([row.event_id for row in rows]))
    types = dict(session.execute(named).all())
    return page(rows, more, lambda row: show_delivery(row, types.get(row.event_id), log[row.id]))
