"""Check the one-off webhook of a job, and list the deliveries of an endpoint or of such a webhook."""

from dataclasses import dataclass

from pydantic import BaseModel, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.http.bodies import Body
from api.http.paging import Page, find, page
from api.webhooks.schemas import DeliveryObject, show_delivery
from jobs.errors import InvalidRequest
from jobs.platform.url_guard import check_url
from jobs.webhooks import deliveries
from jobs.webhooks.sending import check_secret, new_secret
from jobs.webhooks.tables import Delivery, Event


class JobWebhook(Body):
    """The URL that is notified of this job's end, besides the project's endpoints."""

    url: str = Field(min_length=1, max_length=2048)
    secret: str | None = Field(default=None, max_length=128, description="`whsec_…`; without one, one is made.")


class BatchWebhook(BaseModel):
    """`signing_secret` is shown if it was made here, and only in the answer to the create."""

    url: str
    signing_secret: str | None


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook that may be called. `made`: its secret was made here, so the client has to be shown it."""

    url: str
    secret: str
    made: bool


def check_webhook(call: CallContext, webhook: JobWebhook | None) -> Hook | None:
    """Return the webhook with its secret. It resolves the host, so never call it inside a transaction.

    Raises: InvalidRequest.
    """
    if webhook is None:
        return None
    try:
        check_url(webhook.url, allow_private=call.config.webhook_allow_private, project_id=call.project_id)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="webhook.url", code=error.code) from error
    if webhook.secret is None:
        return Hook(webhook.url, new_secret(), made=True)
    return Hook(webhook.url, check_secret(webhook.secret, param="webhook.secret"), made=False)


def show_webhook(hook: Hook | None) -> BatchWebhook | None:
    """Return the webhook as the answer to a create shows it."""
    return BatchWebhook(url=hook.url, signing_secret=hook.secret if hook.made else None) if hook else None


def delivery_page(
    session: Session,
    selection: Select[Delivery],
    *,
    after: str | None,
    limit: int,
    order: str,
    state: str | None = None,
) -> Page[DeliveryObject]:
    """Return a page of the `selection` in this `state`, with the attempts and the types of the events.

    `order` is by the time of their event.
    """
    selected = selection if state is None else selection.where(Delivery.state == state)
    rows, more = find(session, selected, Delivery, after=after, limit=limit, order=order, among=selection)
    log = deliveries.attempts(session, [row.id for row in rows])
    named = select(Event.id, Event.type).where(Event.id.in_([row.event_id for row in rows]))
    types = dict(session.execute(named).all())
    return page(rows, more, lambda row: show_delivery(row, types.get(row.event_id), log[row.id]))
