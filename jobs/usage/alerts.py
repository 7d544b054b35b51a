"""Spend alerts: fire once a month, when the cost of the month reaches the threshold.

Usage of the last seconds of a month is added up in the next one. So alerts look at a month until five minutes after it.

An event is recorded with its deliveries, and an audit row, in the transaction that notes the month. The event of an
alert of the organization goes to the webhooks of the default project, because every event belongs to a project and
every deployment has that one.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import execute_and_count
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.ledger import audit, events
from jobs.security.tables import Project
from jobs.usage.budgets import MICROS_PER_CENT, ORGANIZATION, month_cost
from jobs.usage.minutes import month_of
from jobs.usage.tables import Spend, SpendAlert
from jobs.webhooks.tables import Event

EVENT: Final = "spend.alert.reached"
#: Alerts of a project, or of the organization.
MAX_ALERTS: Final = 100
_LATE_SECONDS: Final = 300.0
_DEFAULT_PROJECT: Final = "default"


def create(session: Session, owner: str, **columns: Any) -> SpendAlert:
    """Add an alert of a project, or of the organization. Raises InvalidRequest where there are too many."""
    alerts = select(func.count()).select_from(SpendAlert).where(SpendAlert.project_id == owner)
    if (session.scalar(alerts) or 0) >= MAX_ALERTS:
        message = f"There are {MAX_ALERTS} spend alerts, which is the most. Delete one first."
        raise InvalidRequest(message, code="too_many_spend_alerts")
    alert = SpendAlert(id=new_id("alert_"), project_id=owner, created_at=now(), **columns)
    session.add(alert)
    return alert


def month_of_alerts() -> int:
    """Return the beginning of the month that alerts look at, in unix seconds."""
    return month_of(now() - _LATE_SECONDS)


def alerts_to_fire(session: Session, limit: int = 200) -> Sequence[str]:
    """Return alerts whose threshold the month's cost has reached, and that have not fired this month."""
    month = month_of_alerts()
    waiting = select(SpendAlert.id).where(SpendAlert.fired_month.is_distinct_from(month)).limit(limit)
    its_spend = and_(Spend.project_id == SpendAlert.project_id, Spend.month == month)
    threshold = SpendAlert.cents * MICROS_PER_CENT
    of_projects = waiting.join(Spend, its_spend).where(SpendAlert.project_id != ORGANIZATION, Spend.amount >= threshold)
    of_all = waiting.where(SpendAlert.project_id == ORGANIZATION)
    if session.scalar(of_all) is None or not (total := month_cost(session, ORGANIZATION, month)):
        return session.scalars(of_projects).all()
    return [*session.scalars(of_projects), *session.scalars(of_all.where(threshold <= total))]


def fire(session: Session, alert_id: str) -> bool:
    """Record that an alert has reached its threshold; return False where it has fired this month, or is gone."""
    month = month_of_alerts()
    of_month = SpendAlert.id == alert_id, SpendAlert.fired_month.is_distinct_from(month)
    if execute_and_count(session, update(SpendAlert).where(*of_month).values(fired_month=month)) != 1:
        return False
    alert = session.get_one(SpendAlert, alert_id)
    default = select(Project.id).where(Project.name == _DEFAULT_PROJECT, Project.archived_at.is_(None))
    data = {"id": alert.id, "project_id": alert.project_id or None, "threshold_amount": alert.cents, "currency": "USD"}
    if project_id := alert.project_id or session.scalar(default):
        seq = session.scalar(select(func.coalesce(func.max(Event.seq), 0) + 1).where(Event.subject_id == alert.id)) or 1
        event = events.record(session, subject_id=alert.id, seq=seq, project_id=project_id, type=EVENT, data=data)
        session.flush()
        events.fan_out(session, event)
    audit.record(
        session,
        actor="dispatcher",
        action="spend_alert.fire",
        target=alert.id,
        project_id=alert.project_id or None,
        details={"threshold_amount": alert.cents},
    )
    return True
