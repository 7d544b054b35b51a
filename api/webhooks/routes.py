"""Webhook endpoints of a project, their deliveries, tests and replays."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.shares import run_in_threadpool
from api.webhooks.queries import delivery_page
from api.webhooks.schemas import (
    DeliveryObject,
    EndpointDeleted,
    EndpointObject,
    EndpointWithSecret,
    EventTypeList,
    Replayed,
    TestResult,
    show_endpoint,
    show_with_secret,
)
from jobs.clock import now
from jobs.db.engine import WRITE_ROWS
from jobs.errors import Conflict, DatabaseBusy, InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.known_kinds import EVENT_TYPES
from jobs.platform.url_guard import check_url, on_behalf_of
from jobs.security.tables import Project
from jobs.webhooks import deliveries, replays, webhook_endpoints
from jobs.webhooks.sending import body as body_of
from jobs.webhooks.sending import new_secret, old_secrets, post_once, signing_secrets
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint

router = resource("Webhooks", area="webhooks")

#: OpenAI's other event types. Nothing here causes them, but a client that subscribes to all types is not refused.
ELSEWHERE_TYPES = (
    "realtime.call.incoming",
    "video.completed",
    "video.failed",
    "agent.environment.ready",
    "agent.environment.failed",
    "agent.environment.suspended",
    "agent.environment.expired",
    "agent.session.created",
    "agent.session.action_required",
    "agent.session.in_progress",
    "agent.session.idle",
    "agent.session.failed",
    "safety.alert.created",
)

if TYPE_CHECKING:
    EventType = str
    SubscribedType = str
else:
    EventType = Literal[tuple(EVENT_TYPES)]
    SubscribedType = Literal[(*EVENT_TYPES, *ELSEWHERE_TYPES)]
EventTypes = Annotated[list[SubscribedType], Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]

_OVERLAP_SECONDS = 86_400
_MAX_OLD_SECRETS = 20  # each adds a signature, and receivers limit headers
_MAX_ENDPOINTS = 100
_REPLAYED_AT_ONCE = 1000
#: The types of events, without their last words, that tell of a part of a vector store.
_OF_A_STORE = frozenset({"vector_store.file", "vector_store.source"})
_UNPARKED_AT_ONCE = 20  # transactions in the request that enables an endpoint; the dispatcher unparks the rest


class CreateEndpoint(Body):
    name: Name
    url: Url
    event_types: EventTypes


class UpdateEndpoint(Body):
    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class RotateSecret(Body):
    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(Body):
    event_type: EventType


class Replay(Body):
    """The deliveries to send again: by id, by event, or by a span of time (Unix seconds).

    `failed_since` selects failed deliveries, `since` and `until` select delivered ones too. `missed` adds the events
    that were never sent because the endpoint was disabled.
    """

    delivery_ids: list[Annotated[str, Field(max_length=64)]] | None = Field(default=None, min_length=1, max_length=1000)
    event_id: str | None = Field(default=None, max_length=64)
    since: float | None = Field(default=None, ge=0, le=1e11)
    until: float | None = Field(default=None, ge=0, le=1e11)
    failed_since: float | None = Field(default=None, ge=0, le=1e11)
    missed: bool = False


@router.post("/webhook_endpoints", response_model=EndpointWithSecret)
def create_endpoint(call: Call, once: Idempotent, body: CreateEndpoint) -> Response:
    """Create an endpoint. Its signing secret is shown here and never again."""
    replayed = once.replay(body.fields())
    if replayed is not None:
        return replayed
    _check_url(call, body.url)

    def make(session: Session) -> EndpointWithSecret:
        _check_room(session, call)
        endpoint = WebhookEndpoint(
            id=new_id("we_"),
            project_id=call.project_id,
            name=body.name,
            url=body.url,
            event_types=_unique(body.event_types),
            secret=new_secret(),
            created_at=now(),
        )
        session.add(endpoint)
        call.record(session, "webhook_endpoint.create", endpoint.id, {"event_types": endpoint.event_types})
        return show_with_secret(endpoint)

    return once.run(body.fields(), make)


@router.get("/webhook_endpoints")
def list_endpoints(call: Call, after: After = None, limit: Limit20 = 20) -> Page[EndpointObject]:
    """List the project's endpoints."""
    with call.db.read() as session:
        deletions = deletion_details(call, "webhook_endpoint.delete")
        rows, more = find(session, _endpoints(call), WebhookEndpoint, after=after, limit=limit, deletions=deletions)
    return page(rows, more, show_endpoint)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def retrieve_endpoint(call: Call, webhook_endpoint_id: str) -> EndpointObject:
    """Return one endpoint, without its secret."""
    with call.db.read() as session:
        return show_endpoint(_get(session, call, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
def update_endpoint(call: Call, webhook_endpoint_id: str, body: UpdateEndpoint) -> EndpointObject:
    """Change an endpoint. A disabled one is enabled again, and its held deliveries are sent."""
    if body.url is not None:
        _check_url(call, body.url)
    with call.db.write() as session:
        endpoint = _get(session, call, webhook_endpoint_id, lock=True)
        given = {name: value for name, value in body.fields().items() if value is not None}
        if "event_types" in given:
            given["event_types"] = _unique(given["event_types"])
        if any(getattr(endpoint, name) != value for name, value in given.items()):
            endpoint.updated_at = now()
        for name, value in given.items():
            setattr(endpoint, name, value)
        unparked = webhook_endpoints.enable(session, endpoint, actor=call.actor)
        call.record(session, "webhook_endpoint.update", endpoint.id, {"fields": sorted(body.fields())})
        shown = show_endpoint(endpoint)
    if unparked == WRITE_ROWS:
        with suppress(DatabaseBusy):  # the dispatcher does the rest
            _unpark(call)
    return shown


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_endpoint(call: Call, webhook_endpoint_id: str) -> EndpointDeleted:
    """Delete an endpoint. Its pending deliveries are not sent."""
    with call.db.write() as session:
        endpoint = _get(session, call, webhook_endpoint_id, lock=True)
        webhook_endpoints.delete(session, endpoint)
        call.record(session, "webhook_endpoint.delete", webhook_endpoint_id, cursor_details(endpoint))
    return EndpointDeleted(id=webhook_endpoint_id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", response_model=EndpointWithSecret)
def rotate_secret(call: Call, once: Idempotent, webhook_endpoint_id: str, body: RotateSecret | None = None) -> Response:
    """Replace the signing secret.

    The old one signs for another day if requested; otherwise no old secret signs any more.
    """
    options = body or RotateSecret()

    def make(session: Session) -> EndpointWithSecret:
        endpoint = _get(session, call, webhook_endpoint_id, lock=True)
        _rotate(endpoint, keep=options.keep_old_secret_active_for_24_hours)
        details = {"kept": options.keep_old_secret_active_for_24_hours}
        call.record(session, "webhook_endpoint.rotate_secret", endpoint.id, details)
        return show_with_secret(endpoint)

    return once.run(options.fields(), make)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
async def test_endpoint(call: Call, webhook_endpoint_id: str, body: TestEndpoint) -> TestResult:
    """Send a signed test event of this type at once, about an object that does not exist, and report the answer."""

    def look() -> WebhookEndpoint:
        with call.db.write() as session:
            call.record(session, "webhook_endpoint.test", webhook_endpoint_id)
            return _get(session, call, webhook_endpoint_id)

    endpoint = await run_in_threadpool(look)
    secrets = signing_secrets(endpoint, now())
    content = body_of(_sample(call, body.event_type))
    with on_behalf_of(call.project_id):
        outcome = await post_once(call.config, endpoint.url, secrets, new_id("wh_"), content)
    if outcome.status_code is None:
        message = f"The receiver could not be reached: {outcome.error}."
        raise InvalidRequest(message, param="url", code="webhook_not_delivered")
    return TestResult(
        webhook_endpoint_id=endpoint.id,
        event_type=body.event_type,
        status_code=outcome.status_code,
    )


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries")
def list_deliveries(
    call: Call,
    webhook_endpoint_id: str,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    state: Annotated[Literal["pending", "delivered", "failed"] | None, Query()] = None,
) -> Page[DeliveryObject]:
    """List deliveries with all their attempts, pending ones included."""
    with call.db.read() as session:
        _get(session, call, webhook_endpoint_id)
        deliveries = _deliveries(call, webhook_endpoint_id)
        return delivery_page(session, deliveries, after=after, limit=limit, order=order, state=state)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/replay")
def replay(call: Call, webhook_endpoint_id: str, body: Replay) -> Replayed:
    """Send deliveries again under their former `webhook-id`."""
    with call.db.write() as session:
        _get(session, call, webhook_endpoint_id)
        selection = _selection(session, call, webhook_endpoint_id, body)
        ids = replays.replay(session, call.project_id, webhook_endpoint_id, selection, _REPLAYED_AT_ONCE)
        call.record(session, "webhook_endpoint.replay", webhook_endpoint_id, {"deliveries": len(ids)})
    return Replayed(webhook_endpoint_id=webhook_endpoint_id, delivery_ids=ids, has_more=len(ids) >= _REPLAYED_AT_ONCE)


@router.get("/webhook_event_types")
def list_event_types() -> EventTypeList:
    """List the event types that an endpoint may subscribe to."""
    return EventTypeList(data=list(EVENT_TYPES))


def _endpoints(call: CallContext) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(WebhookEndpoint.project_id == call.project_id)


def _deliveries(call: CallContext, endpoint_id: str) -> Select[Delivery]:
    return select(Delivery).where(Delivery.project_id == call.project_id, Delivery.endpoint_id == endpoint_id)


def _get(session: Session, call: CallContext, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    statement = _endpoints(call).where(WebhookEndpoint.id == endpoint_id)
    endpoint = session.scalar(statement.with_for_update() if lock else statement)
    if endpoint is None:
        raise NotFound(f"No webhook endpoint found with id '{clip(endpoint_id)}'.", param="webhook_endpoint_id")
    return endpoint


def _check_url(call: CallContext, url: str) -> None:
    """Check a URL. It resolves the host, so never call it inside a transaction.

    Raises: InvalidRequest.
    """
    check_url(url, allow_private=call.config.webhook_allow_private, project_id=call.project_id)


def _check_room(session: Session, call: CallContext) -> None:
    session.get(
        Project, call.project_id, with_for_update={"key_share": True}
    )  # locked, so that concurrent creates count each other
    count = session.scalar(select(func.count()).select_from(_endpoints(call).subquery())) or 0
    if count >= _MAX_ENDPOINTS:
        raise Conflict(f"A project has at most {_MAX_ENDPOINTS} webhook endpoints.", code="too_many_endpoints")


def _rotate(endpoint: WebhookEndpoint, *, keep: bool) -> None:
    """Replace the secret.

    A repeated request rotates twice and its first answer is lost, so older kept secrets stay valid.
    """
    at = now()
    older = old_secrets(endpoint, at) if keep else []
    if len(older) >= _MAX_OLD_SECRETS:
        message = f"{len(older)} old secrets of this endpoint still sign; rotate without keeping them, or later."
        raise Conflict(message, code="too_many_secrets")
    endpoint.older_secrets = [[secret, until] for secret, until in older]
    endpoint.old_secret = endpoint.secret if keep else None
    endpoint.old_secret_until = at + _OVERLAP_SECONDS if keep else None
    endpoint.secret, endpoint.updated_at = new_secret(), at


def _unpark(call: CallContext) -> None:
    """Unpark the deliveries that one transaction left, and others that are parked without reason."""
    for _ in range(_UNPARKED_AT_ONCE):
        with call.db.read() as session:
            parked = webhook_endpoints.deliveries_to_resume(session, WRITE_ROWS)
        if not parked:
            return
        with call.db.write() as session:
            webhook_endpoints.unpark(session, parked)
        call.db.breathe()


def _unique(types: list[Any]) -> list[Any]:
    return list(dict.fromkeys(types))


def _sample(call: CallContext, event_type: str) -> Event:
    """Return an event for a test, which is sent and not stored."""
    data = {"id": new_id(f"{EVENT_TYPES[event_type]}test_")}
    if event_type.rpartition(".")[0] in _OF_A_STORE:
        data["vector_store_id"] = new_id("vs_test_")
    return Event(
        subject_id="test",
        seq=0,
        id=new_id("evt_"),
        project_id=call.project_id,
        type=event_type,
        data=data,
        created_at=now(),
    )


def _selection(session: Session, call: CallContext, endpoint_id: str, body: Replay) -> replays.Selection:
    """Return the deliveries that a replay selects.

    Raises: InvalidRequest, unless it has exactly one kind of selection.
    """
    by_time = body.since is not None or body.until is not None
    given = [body.delivery_ids is not None, body.event_id is not None, body.failed_since is not None, by_time]
    if sum(given) != 1:
        message = "Name exactly one of delivery_ids, event_id, failed_since, since/until."
        raise InvalidRequest(message, param="delivery_ids", code="invalid_selection")
    if body.delivery_ids is not None:
        return replays.Selection(ids=tuple(body.delivery_ids))
    if body.event_id is not None:
        statement = _deliveries(call, endpoint_id).where(Delivery.event_id == body.event_id)
        ids = tuple(row.id for row in session.scalars(statement))
        if not ids:
            raise NotFound(f"No delivery of event '{clip(body.event_id)}' to this endpoint.", param="event_id")
        return replays.Selection(ids=ids)
    if body.failed_since is not None:
        return replays.Selection(since=body.failed_since, missed=body.missed)
    both = (deliveries.DELIVERED, deliveries.FAILED)
    return replays.Selection(since=body.since, until=body.until, states=both, missed=body.missed)
