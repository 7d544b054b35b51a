"""Spend alerts: when they fire, once a month and threshold, and what they record."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.usage import alerts
from jobs.usage.budgets import MICROS_PER_CENT, ORGANIZATION
from jobs.usage.minutes import month_of
from jobs.usage.tables import Spend, SpendAlert
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint


def create(db: Database, owner: str, cents: int) -> str:
    with db.write() as session:
        return alerts.create(session, owner, cents=cents, recipients=["a@example.com"]).id


def spend(db: Database, project: str, cents: float) -> None:
    with db.write() as session:
        amount = round(cents * MICROS_PER_CENT)
        session.merge(Spend(project_id=project, month=alerts.month_of_alerts(), amount=amount))


def reached(db: Database) -> set[str]:
    with db.read() as session:
        return set(alerts.alerts_to_fire(session))


def fire(db: Database, alert_id: str) -> bool:
    with db.write() as session:
        return alerts.fire(session, alert_id)


@pytest.mark.dialects
def test_alert_is_due_at_the_threshold(db: Database) -> None:
    at_5, at_6 = create(db, "p", 5), create(db, "p", 6)
    of_all, beyond = create(db, ORGANIZATION, 9), create(db, ORGANIZATION, 10)
    assert reached(db) == set()

    spend(db, "p", 5)
    assert reached(db) == {at_5}

    spend(db, "q", 4.5)
    assert reached(db) == {at_5, of_all}
    assert not {at_6, beyond} & reached(db)


@pytest.mark.dialects
def test_alert_fires_once_a_month(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    alert_id = create(db, "p", 5)
    spend(db, "p", 7)

    assert [fire(db, alert_id), fire(db, alert_id)] == [True, False]
    assert reached(db) == set()

    with db.write() as session:  # its threshold was changed
        session.execute(update(SpendAlert).values(fired_month=None))
    assert fire(db, alert_id)

    at = now() + 32 * 86_400
    monkeypatch.setattr(alerts, "now", lambda: at)
    assert reached(db) == set()
    spend(db, "p", 5)
    assert reached(db) == {alert_id}
    assert fire(db, alert_id)
    with db.read() as session:
        assert sorted(session.scalars(select(Event.seq).where(Event.subject_id == alert_id))) == [1, 2, 3]


def test_usage_that_is_added_up_after_its_month_fires_the_alert_of_the_month(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    december = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp())
    of_project, of_all = create(sqlite, "p", 5), create(sqlite, ORGANIZATION, 5)
    with sqlite.write() as session:
        session.add(Spend(project_id="p", month=month_of(december - 1), amount=5 * MICROS_PER_CENT))

    monkeypatch.setattr(alerts, "now", lambda: december + 60.0)
    assert reached(sqlite) == {of_project, of_all}
    assert fire(sqlite, of_project)
    assert reached(sqlite) == {of_all}

    monkeypatch.setattr(alerts, "now", lambda: december + 3600.0)
    assert reached(sqlite) == set()
    spend(sqlite, "p", 5)
    assert reached(sqlite) == {of_project, of_all}


def test_alert_notifies_webhooks_of_the_right_project(sqlite: Database) -> None:
    with sqlite.write() as session:
        default, other = (keys.ensure_project(session, name).id for name in ("default", "other"))
        for owner in (default, other):
            facts = {"name": "n", "url": "https://example.com", "secret": "s", "created_at": 1.0}
            session.add(
                WebhookEndpoint(id=f"we_{owner}", project_id=owner, event_types=[alerts.EVENT], updated_at=1.0, **facts)
            )
    of_all, of_other = create(sqlite, ORGANIZATION, 1), create(sqlite, other, 1)
    assert fire(sqlite, of_all)
    assert fire(sqlite, of_other)

    with sqlite.read() as session:
        told = {row.subject_id: (row.project_id, row.data) for row in session.scalars(select(Event))}
        deliveries = set(session.scalars(select(Delivery.endpoint_id)))
        audited = session.execute(select(Audit.target, Audit.project_id, Audit.details)).all()
    facts = {"threshold_amount": 1, "currency": "USD"}
    assert told == {
        of_all: (default, {"id": of_all, "project_id": None, **facts}),
        of_other: (other, {"id": of_other, "project_id": other, **facts}),
    }
    assert deliveries == {f"we_{default}", f"we_{other}"}
    assert sorted(map(tuple, audited), key=str) == sorted(
        [(of_all, None, {"threshold_amount": 1}), (of_other, other, {"threshold_amount": 1})], key=str
    )


def test_number_of_alerts_is_bounded(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "MAX_ALERTS", 2)
    create(sqlite, "p", 1)
    create(sqlite, "p", 2)

    with pytest.raises(InvalidRequest, match="2 spend alerts"):
        create(sqlite, "p", 3)
    create(sqlite, "q", 1)
