"""Webhook endpoints in OpenAI's shape, and the log of deliveries."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from api.http.fields import unix_seconds
from jobs.webhooks.tables import Attempt, Delivery, WebhookEndpoint


class EndpointObject(BaseModel):
    """`disabled_at` and `disabled_reason` are not OpenAI's: an update enables the endpoint again."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    disabled_at: int | None
    disabled_reason: str | None


class EndpointWithSecret(EndpointObject):
    """The only answers that show the secret: those that create it."""

    signing_secret: str


class EndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestResult(BaseModel):
    """The receiver's answer; `status_code` is its status."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class AttemptObject(BaseModel):
    n: int
    at: int
    seconds: float
    status_code: int | None
    error: str | None


class DeliveryObject(BaseModel):
    """A delivery. Its id is the `webhook-id` that the receiver sees at every attempt."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook_endpoint_id: str | None
    event_id: str
    event_type: str | None
    state: str
    created_at: int
    delivered_at: int | None
    next_attempt_at: int | None
    status_code: int | None
    error: str | None
    attempts: list[AttemptObject]


class Replayed(BaseModel):
    """The deliveries that were made pending again; with `has_more`, send the request again for the rest."""

    object: Literal["webhook_endpoint.replay"] = "webhook_endpoint.replay"
    webhook_endpoint_id: str
    delivery_ids: list[str]
    has_more: bool


def show_endpoint(endpoint: WebhookEndpoint) -> EndpointObject:
    return EndpointObject(
        id=endpoint.id,
        created_at=int(endpoint.created_at),
        updated_at=int(endpoint.updated_at or endpoint.created_at),
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        signing_secret_hint=f"…{endpoint.secret[-4:]}",
        disabled_at=unix_seconds(endpoint.disabled_at),
        disabled_reason=endpoint.disabled_reason,
    )


def show_with_secret(endpoint: WebhookEndpoint) -> EndpointWithSecret:
    return EndpointWithSecret(**show_endpoint(endpoint).model_dump(), signing_secret=endpoint.secret)


def show_delivery(delivery: Delivery, event_type: str | None, attempts: Sequence[Attempt]) -> DeliveryObject:
    waits = delivery.state == "pending"
    return DeliveryObject(
        id=delivery.id,
        webhook_endpoint_id=delivery.endpoint_id,
        event_id=delivery.event_id,
        event_type=event_type,
        state=delivery.state,
        created_at=int(delivery.created_at),
        delivered_at=unix_seconds(delivery.delivered_at),
        next_attempt_at=int(delivery.due_at) if waits else None,
        status_code=delivery.status_code,
        error=delivery.error,
        attempts=[
            AttemptObject(
                n=attempt.n,
                at=int(attempt.at),
                seconds=round(attempt.seconds, 4),
                status_code=attempt.status_code,
                error=attempt.error,
            )
            for attempt in attempts
        ],
    )
