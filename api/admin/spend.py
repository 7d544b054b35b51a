"""Spend limits and spend alerts of the organization and of projects, with the fields of OpenAI's admin API.

Amounts are in cents. A limit holds from the next request on, and within two seconds in processes that knew of none.
"""

from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Path
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page
from api.admin.queries import find_active_project, find_project
from api.deps import Admin, AdminContext
from api.errors import clip
from api.http.bodies import Body, Many, resource
from api.http.paging import After, Before, Limit20, Order, find
from jobs.errors import NotFound
from jobs.usage import alerts
from jobs.usage.budgets import MICROS_PER_CENT, ORGANIZATION, budget_of, change_limit
from jobs.usage.tables import SpendAlert

router = resource("Organization", area="management", admin=True)

_MAX_CENTS: Final = 10**12
_MAX_RECIPIENTS: Final = 50
ProjectId = Annotated[str, Path(max_length=64)]
AlertId = Annotated[str, Path(max_length=64)]


class Threshold(Body):
    currency: Literal["USD"]
    interval: Literal["month"]


class NewSpendLimit(Threshold):
    """The most that may be spent in a calendar month in UTC."""

    threshold_amount: int = Field(ge=1, le=_MAX_CENTS, description="In cents.")


class NotificationChannel(Body):
    """Whom to tell. No mail is sent: an event tells webhooks."""

    type: Literal["email"]
    recipients: Annotated[
        Many[Annotated[str, Field(min_length=3, max_length=320)]], Field(min_length=1, max_length=_MAX_RECIPIENTS)
    ]
    subject_prefix: str | None = Field(default=None, max_length=255)


class NewSpendAlert(Threshold):
    """The cost of a calendar month in UTC at which an alert fires."""

    threshold_amount: int = Field(ge=0, le=_MAX_CENTS, description="In cents.")
    notification_channel: NotificationChannel


class Enforcement(BaseModel):
    status: Literal["inactive", "enforcing"]


class SpendLimitObject(BaseModel):
    """A spend limit. It is `enforcing` while requests are refused and jobs wait for it."""

    object: str
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    enforcement: Enforcement


class SpendLimitDeleted(BaseModel):
    object: str
    deleted: Literal[True] = True


class SpendAlertObject(BaseModel):
    id: str
    object: str
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    notification_channel: NotificationChannel


class SpendAlertDeleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True] = True


@router.get("/organization/spend_limit")
def retrieve_spend_limit(call: Admin) -> SpendLimitObject:
    """Return the spend limit of the organization."""
    with call.db.read() as session:
        return _show_limit(call, session, ORGANIZATION)


@router.post("/organization/spend_limit")
def update_spend_limit(call: Admin, body: NewSpendLimit) -> SpendLimitObject:
    """Set the spend limit of the organization, which holds for all projects together."""
    with call.db.write() as session:
        return _set_limit(call, session, ORGANIZATION, body)


@router.delete("/organization/spend_limit")
def delete_spend_limit(call: Admin) -> SpendLimitDeleted:
    """Remove the spend limit of the organization."""
    with call.db.write() as session:
        return _delete_limit(call, session, ORGANIZATION)


@router.get("/organization/projects/{project_id}/spend_limit")
def retrieve_project_spend_limit(call: Admin, project_id: ProjectId) -> SpendLimitObject:
    """Return the spend limit of a project."""
    with call.db.read() as session:
        return _show_limit(call, session, find_project(session, project_id).id)


@router.post("/organization/projects/{project_id}/spend_limit")
def update_project_spend_limit(call: Admin, project_id: ProjectId, body: NewSpendLimit) -> SpendLimitObject:
    """Set the spend limit of a project. That of the organization holds beside it."""
    with call.db.write() as session:
        return _set_limit(call, session, find_active_project(session, project_id).id, body)


@router.delete("/organization/projects/{project_id}/spend_limit")
def delete_project_spend_limit(call: Admin, project_id: ProjectId) -> SpendLimitDeleted:
    """Remove the spend limit of a project."""
    with call.db.write() as session:
        return _delete_limit(call, session, find_project(session, project_id).id)


def _show_limit(call: AdminContext, session: Session, owner: str) -> SpendLimitObject:
    budget = budget_of(session, owner, call.services.registry().price_source)
    if budget.limit is None:
        raise _no_limit(owner)
    return SpendLimitObject(
        object=f"{_noun(owner)}.spend_limit",
        threshold_amount=budget.limit // MICROS_PER_CENT,
        enforcement=Enforcement(status="enforcing" if budget.is_exhausted else "inactive"),
    )


def _no_limit(owner: str) -> NotFound:
    return NotFound(f"This {_noun(owner)} has no spend limit.", code="spend_limit_not_found")


def _set_limit(call: AdminContext, session: Session, owner: str, body: NewSpendLimit) -> SpendLimitObject:
    change_limit(session, owner, body.threshold_amount, actor=call.actor, request_id=call.request_id)
    return _show_limit(call, session, owner)


def _delete_limit(call: AdminContext, session: Session, owner: str) -> SpendLimitDeleted:
    if not change_limit(session, owner, None, actor=call.actor, request_id=call.request_id):
        raise _no_limit(owner)
    return SpendLimitDeleted(object=f"{_noun(owner)}.spend_limit.deleted")


# -- alerts


class AlertQuery:
    """The query of a list of alerts."""

    def __init__(
        self,
        after: After = None,
        before: Before = None,
        limit: Limit20 = 20,
        order: Order = "asc",
    ) -> None:
        self.values: dict[str, Any] = {"after": after, "before": before, "limit": limit, "order": order}


AlertPage = Annotated[AlertQuery, Depends()]


@router.post("/organization/spend_alerts")
def create_spend_alert(call: Admin, body: NewSpendAlert) -> SpendAlertObject:
    """Create an alert of what all projects spend together."""
    with call.db.write() as session:
        return _create_alert(call, session, ORGANIZATION, body)


@router.get("/organization/spend_alerts")
def list_spend_alerts(call: Admin, query: AlertPage) -> AdminPage[SpendAlertObject]:
    """List the alerts of the organization."""
    with call.db.read() as session:
        return _list_alerts(session, ORGANIZATION, query)


@router.get("/organization/spend_alerts/{alert_id}")
def retrieve_spend_alert(call: Admin, alert_id: AlertId) -> SpendAlertObject:
    """Return an alert of the organization."""
    with call.db.read() as session:
        return _show_alert(_find_alert(session, ORGANIZATION, alert_id))


@router.post("/organization/spend_alerts/{alert_id}")
def update_spend_alert(call: Admin, alert_id: AlertId, body: NewSpendAlert) -> SpendAlertObject:
    """Replace an alert of the organization. With another threshold it may fire again this month."""
    with call.db.write() as session:
        return _update_alert(call, session, ORGANIZATION, alert_id, body)


@router.delete("/organization/spend_alerts/{alert_id}")
def delete_spend_alert(call: Admin, alert_id: AlertId) -> SpendAlertDeleted:
    """Delete an alert of the organization."""
    with call.db.write() as session:
        return _delete_alert(call, session, ORGANIZATION, alert_id)


@router.post("/organization/projects/{project_id}/spend_alerts")
def create_project_spend_alert(call: Admin, project_id: ProjectId, body: NewSpendAlert) -> SpendAlertObject:
    """Create an alert of what a project spends."""
    with call.db.write() as session:
        return _create_alert(call, session, find_active_project(session, project_id).id, body)


@router.get("/organization/projects/{project_id}/spend_alerts")
def list_project_spend_alerts(call: Admin, project_id: ProjectId, query: AlertPage) -> AdminPage[SpendAlertObject]:
    """List the alerts of a project."""
    with call.db.read() as session:
        return _list_alerts(session, find_project(session, project_id).id, query)


@router.get("/organization/projects/{project_id}/spend_alerts/{alert_id}")
def retrieve_project_spend_alert(call: Admin, project_id: ProjectId, alert_id: AlertId) -> SpendAlertObject:
    """Return an alert of a project."""
    with call.db.read() as session:
        return _show_alert(_find_alert(session, find_project(session, project_id).id, alert_id))


@router.post("/organization/projects/{project_id}/spend_alerts/{alert_id}")
def update_project_spend_alert(
    call: Admin, project_id: ProjectId, alert_id: AlertId, body: NewSpendAlert
) -> SpendAlertObject:
    """Replace an alert of a project. With another threshold it may fire again this month."""
    with call.db.write() as session:
        return _update_alert(call, session, find_active_project(session, project_id).id, alert_id, body)


@router.delete("/organization/projects/{project_id}/spend_alerts/{alert_id}")
def delete_project_spend_alert(call: Admin, project_id: ProjectId, alert_id: AlertId) -> SpendAlertDeleted:
    """Delete an alert of a project."""
    with call.db.write() as session:
        return _delete_alert(call, session, find_project(session, project_id).id, alert_id)


def _create_alert(call: AdminContext, session: Session, owner: str, body: NewSpendAlert) -> SpendAlertObject:
    alert = alerts.create(session, owner, **_columns(body))
    _record(call, session, "spend_alert.create", alert)
    return _show_alert(alert)


def _update_alert(
    call: AdminContext, session: Session, owner: str, alert_id: str, body: NewSpendAlert
) -> SpendAlertObject:
    alert = _find_alert(session, owner, alert_id)
    if alert.cents != body.threshold_amount:
        alert.fired_month = None
    for name, value in _columns(body).items():
        setattr(alert, name, value)
    _record(call, session, "spend_alert.update", alert)
    return _show_alert(alert)


def _delete_alert(call: AdminContext, session: Session, owner: str, alert_id: str) -> SpendAlertDeleted:
    alert = _find_alert(session, owner, alert_id)
    session.delete(alert)
    _record(call, session, "spend_alert.delete", alert)
    return SpendAlertDeleted(id=alert.id, object=f"{_noun(owner)}.spend_alert.deleted")


def _list_alerts(session: Session, owner: str, query: AlertQuery) -> AdminPage[SpendAlertObject]:
    rows, more = find(session, select(SpendAlert).where(SpendAlert.project_id == owner), SpendAlert, **query.values)
    return admin_page(rows, more, _show_alert)


def _columns(body: NewSpendAlert) -> dict[str, Any]:
    channel = body.notification_channel
    return {
        "cents": body.threshold_amount,
        "recipients": list(channel.recipients),
        "subject_prefix": channel.subject_prefix,
    }


def _find_alert(session: Session, owner: str, alert_id: str) -> SpendAlert:
    alert = session.get(SpendAlert, alert_id)
    if alert is None or alert.project_id != owner:
        raise NotFound(f"There is no spend alert '{clip(alert_id)}' of this {_noun(owner)}.")
    return alert


def _show_alert(alert: SpendAlert) -> SpendAlertObject:
    channel = NotificationChannel(type="email", recipients=alert.recipients, subject_prefix=alert.subject_prefix)
    return SpendAlertObject(
        id=alert.id,
        object=f"{_noun(alert.project_id)}.spend_alert",
        threshold_amount=alert.cents,
        notification_channel=channel,
    )


# -- both


def _noun(owner: str) -> str:
    return "project" if owner else "organization"


def _record(call: AdminContext, session: Session, action: str, alert: SpendAlert) -> None:
    details = {"threshold_amount": alert.cents}
    call.record(session, action, alert.id, details, project_id=alert.project_id or None)
