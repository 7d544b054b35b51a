"""Endpoints that are gone or fail for long are disabled, and what is pending for them is held."""

from dataclasses import replace

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import events
from jobs.ledger.tables import Audit
from jobs.webhooks import deliveries, outcomes, webhook_endpoints
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.outcomes import MAX_FAILING_SECONDS
from jobs.webhooks.tables import Delivery, WebhookEndpoint
from tests.support.deliveries import BROKEN, CONFIG, GONE, claim, endpoint, fail_now, happen, job, middle, only, record

pytestmark = pytest.mark.dialects


def test_410_disables_the_endpoint_tells_the_others_and_deletes_nothing(db: Database) -> None:
    endpoint(db, "we_1")
    happen(db, "batch_1")
    endpoint(db, "we_2")

    fail_now(db, GONE)

    with db.read() as session:
        gone = session.get_one(WebhookEndpoint, "we_1")
        assert (gone.disabled_reason, gone.event_seq) == ("gone", 1)
        (event,) = events.after(session, "we_1", 0, 10)
        assert (event.type, event.data) == ("webhook_endpoint.disabled", {"id": "we_1"})
        told = session.scalars(select(Delivery).where(Delivery.event_id == event.id)).all()
        assert [one.endpoint_id for one in told] == ["we_2"]
        (line,) = session.scalars(select(Audit).where(Audit.action == "webhook_endpoint.disable"))
        assert (line.target, line.details) == ("we_1", {"reason": "gone"})
        mine = session.scalars(select(Delivery).where(Delivery.endpoint_id == "we_1")).one()
        assert mine.state == "pending"


def test_one_off_webhook_answered_with_410_fails_immediately(db: Database) -> None:
    happen(db, "batch_1", of=job(db, url="https://one-off.example.com/"))

    fail_now(db, GONE)

    assert only(db).state == "failed"


def test_endpoint_that_only_failed_for_long_is_disabled(db: Database) -> None:
    endpoint(db, "we_old", failing_since=now() - MAX_FAILING_SECONDS - 1)
    happen(db, "batch_1")
    fail_now(db)

    endpoint(db, "we_new", failing_since=now() - MAX_FAILING_SECONDS + 60)
    happen(db, "batch_2")
    (held,) = claim(db)
    record(db, held, BROKEN)

    with db.read() as session:
        assert session.get_one(WebhookEndpoint, "we_old").disabled_reason == "failing"
        assert session.get_one(WebhookEndpoint, "we_new").disabled_at is None


def test_first_failure_starts_the_clock_of_the_endpoint(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    fail_now(db)
    with db.read() as session:
        began = session.get_one(WebhookEndpoint, "we_1").failing_since
    fail_now(db)

    with db.read() as session:
        assert began is not None
        assert session.get_one(WebhookEndpoint, "we_1").failing_since == began


def test_pending_deliveries_of_disabled_endpoint_are_parked_until_enabled(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 3)
    with db.write() as session:
        webhook_endpoints.disable(session, session.get_one(WebhookEndpoint, "we_1"), "gone")

    assert claim(db) == []
    with db.read() as session:
        assert deliveries.due_count(session) == 0
        assert deliveries.next_due(session) == PARKED_UNTIL
    with db.write() as session:
        assert webhook_endpoints.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1") == 3
        assert webhook_endpoints.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1") == 0
    assert len(claim(db, per_endpoint=9)) == 3


def test_parked_deliveries_are_released_and_failed_in_pages(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_endpoints, "WRITE_ROWS", 2)
    for name in ("we_1", "we_2", "we_3"):
        endpoint(db, name)
    happen(db, "batch_1", 3)
    with db.write() as session:
        for name in ("we_1", "we_2", "we_3"):
            webhook_endpoints.disable(session, session.get_one(WebhookEndpoint, name), "gone")
        session.execute(update(Delivery).values(due_at=PARKED_UNTIL))

    with db.write() as session:
        assert webhook_endpoints.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1") == 2
        webhook_endpoints.delete(session, session.get_one(WebhookEndpoint, "we_2"))
    with db.read() as session:
        failed = session.scalars(select(Delivery.endpoint_id).where(Delivery.state == "failed")).all()
        left, lost = (
            webhook_endpoints.deliveries_to_resume(session, 9),
            webhook_endpoints.deliveries_to_fail(session, 9),
        )
        owners = [session.get_one(Delivery, name).endpoint_id for name in (*left, *lost)]
    with db.write() as session:
        assert webhook_endpoints.unpark(session, [*left, *left]) == len(left)
        assert webhook_endpoints.unpark(session, left) == 0

    assert failed == ["we_2"] * 2
    assert min(len(left), len(lost)) > 0
    assert owners == ["we_1"] * len(left) + ["we_2"] * len(lost)
    with db.read() as session:
        assert webhook_endpoints.deliveries_to_resume(session, 9) == []
        assert len(session.scalars(select(Delivery).where(Delivery.due_at >= PARKED_UNTIL)).all()) > 2, (
            "those of the third stay parked"
        )


def test_late_answer_from_before_does_not_disable_an_endpoint_that_was_mended(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 2)
    first, late = claim(db)
    record(db, first, GONE)
    began = now()
    with db.write() as session:
        webhook_endpoints.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1")

        assert outcomes.record(session, [(late, replace(GONE, at=began))], CONFIG, middle) == 1

        assert session.get_one(WebhookEndpoint, "we_1").disabled_at is None


def test_backlog_of_disabled_endpoint_does_not_block_other_endpoints(db: Database) -> None:
    endpoint(db, "we_1")
    happen(db, "batch_1", 200)
    endpoint(db, "we_2")
    happen(db, "batch_2")
    with db.write() as session:
        webhook_endpoints.disable(session, session.get_one(WebhookEndpoint, "we_1"), "gone")

    assert "we_2" in {held.lane for held in claim(db)}


def test_delivery_of_a_deleted_endpoint_fails(db: Database) -> None:
    made = endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        session.delete(session.get_one(WebhookEndpoint, made.id))

    assert claim(db) == []
    assert (only(db).state, only(db).error) == ("failed", "endpoint deleted")


def test_deletion_of_endpoint_fails_its_parked_deliveries(db: Database) -> None:
    endpoint(db, "we_1")
    endpoint(db, "we_2")
    happen(db, "batch_1")
    with db.write() as session:
        for name in ("we_1", "we_2"):
            webhook_endpoints.disable(session, session.get_one(WebhookEndpoint, name), "gone")
    assert claim(db) == []  # which holds them

    with db.write() as session:
        webhook_endpoints.delete(session, session.get_one(WebhookEndpoint, "we_1"))

    with db.read() as session:
        rows = {row.endpoint_id: (row.state, row.error) for row in session.scalars(select(Delivery))}
    assert rows == {"we_1": ("failed", "endpoint deleted"), "we_2": ("pending", None)}


def test_only_parked_deliveries_of_missing_endpoint_are_failed(db: Database) -> None:
    endpoint(db, "we_1")
    endpoint(db, "we_2")
    happen(db, "batch_1", 2)
    happen(db, "batch_2", of=job(db, "batch_2", "https://one-off.example.com/"))
    with db.write() as session:
        session.execute(update(Delivery).where(Delivery.endpoint_id.is_not(None)).values(due_at=PARKED_UNTIL))
        session.delete(session.get_one(WebhookEndpoint, "we_1"))

    with db.write() as session:
        counts = [
            webhook_endpoints.fail_parked(session, webhook_endpoints.deliveries_to_fail(session, 1)) for _ in range(4)
        ]

    assert counts == [1, 1, 1, 0]
    with db.read() as session:
        failed = session.scalars(select(Delivery.endpoint_id).where(Delivery.state == "failed"))
        assert set(failed) == {"we_1"}
