"""Deliveries are sent again, one or those of a time range, and what was missed while an endpoint was disabled."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import Conflict, NotFound
from jobs.webhooks import replays, webhook_endpoints
from jobs.webhooks.replays import Selection
from jobs.webhooks.tables import Delivery, WebhookEndpoint
from tests.support.databases import until_waiting
from tests.support.deliveries import GONE, OK, claim, endpoint, fail_now, happen, job, only, record

pytestmark = pytest.mark.dialects


def test_replay_resends_same_id_from_first_attempt(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (held,) = claim(db)
    record(db, held, OK)

    with db.write() as session:
        assert replays.replay(session, "proj_1", "we_1", Selection(ids=(held.id,))) == [held.id]

    (again,) = claim(db)
    assert (again.id, again.attempt, again.body) == (held.id, 1, held.body)


def test_replay_of_a_time_range_takes_the_failed_ones(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 2)
    good, bad = claim(db)
    record(db, good, OK)
    with db.write() as session:
        session.execute(update(Delivery).where(Delivery.id == bad.id).values(state="failed", worker_id=None))

        assert replays.replay(session, "proj_1", "we_1", Selection(since=now() + 60)) == []
        assert replays.replay(session, "proj_1", "we_1", Selection(until=now() - 60)) == []
        assert replays.replay(session, "proj_1", "we_1", Selection(since=now() - 60)) == [bad.id]


def test_replay_enqueues_events_missed_by_disabled_endpoint_once(db: Database) -> None:
    endpoint(db)
    with db.write() as session:
        webhook_endpoints.disable(session, session.get_one(WebhookEndpoint, "we_1"), "gone")
    happen(db, "batch_1", 2)
    with db.write() as session:
        webhook_endpoints.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1")
    missed = Selection(since=now() - 60, missed=True)

    with db.write() as session:
        pending = replays.replay(session, "proj_1", "we_1", missed)
    with db.write() as session:
        again = replays.replay(session, "proj_1", "we_1", missed)

    # its own `webhook_endpoint.disabled` is among them: nobody could tell it then
    assert (len(pending), again) == (3, [])
    assert len(claim(db, per_endpoint=9)) == 3


@pytest.mark.postgres
def test_concurrent_replays_enqueue_missed_events_once(postgres: Database) -> None:
    happen(postgres, "batch_1", 2)
    endpoint(postgres)
    missed = Selection(since=now() - 60, missed=True)

    def again() -> list[str]:
        with postgres.write() as session:
            return replays.replay(session, "proj_1", "we_1", missed)

    with ThreadPoolExecutor(1) as pool:
        with postgres.write() as session:
            pending = replays.replay(session, "proj_1", "we_1", missed)
            other = pool.submit(again)
            until_waiting(postgres, 1)

        assert len(pending) == 2
        assert other.result(timeout=30) == []
    with postgres.read() as session:
        assert len(session.scalars(select(Delivery)).all()) == 2


def test_replay_skips_delivery_in_flight(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (held,) = claim(db)

    with db.write() as session:
        assert replays.replay(session, "proj_1", "we_1", Selection(ids=(held.id,))) == []
    assert record(db, held, OK) == 1


def test_one_off_webhook_is_replayed_without_endpoint(db: Database) -> None:
    happen(db, "batch_1", of=job(db, url="https://one-off.example.com/"))
    fail_now(db, GONE)

    with db.write() as session:
        assert len(replays.replay(session, "proj_1", None, Selection())) == 1
    assert only(db).state == "pending"


def test_replay_to_a_disabled_endpoint_is_a_conflict(db: Database) -> None:
    endpoint(db, disabled_at=now(), disabled_reason="gone")

    with db.write() as session, pytest.raises(Conflict):
        replays.replay(session, "proj_1", "we_1", Selection())


@pytest.mark.parametrize(
    ("project", "name", "selection"),
    [
        ("proj_2", "we_1", Selection()),
        ("proj_1", "we_9", Selection()),
        ("proj_1", "we_1", Selection(ids=("wh_9",))),
    ],
)
def test_replay_of_missing_or_foreign_resource_is_not_found(
    db: Database, project: str, name: str, selection: Selection
) -> None:
    endpoint(db)

    with db.write() as session, pytest.raises(NotFound):
        replays.replay(session, project, name, selection)
