"""The ledger of deliveries, on SQLite and PostgreSQL: claims and outcomes."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import measures
from jobs.ledger.tables import Job
from jobs.settings import Settings
from jobs.webhooks import deliveries, outcomes
from jobs.webhooks.claims import DeliveryClaim, claim_due, orphans, release_claims, revoke_claims
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.outcomes import next_delay
from jobs.webhooks.sending import AttemptOutcome, new_secret
from jobs.webhooks.tables import Attempt, Delivery, Event, WebhookEndpoint
from tests.support.deliveries import BROKEN, CONFIG, OK, claim, endpoint, fail_now, happen, job, middle, only, record
from tests.support.query_plans import explained
from tests.support.worker_rows import worker_row

pytestmark = pytest.mark.dialects


@pytest.mark.parametrize(
    ("attempt", "retry_after", "draw", "delay"),
    [
        (1, None, 0.5, 10),
        (1, None, 0.0, 8),
        (1, None, 1.0, 12),
        (2, None, 0.5, 100),
        (3, None, 0.5, None),
        (4, None, 0.5, None),
        (1, 7, 0.5, 10),
        (1, 70, 0.5, 70),
        (1, 0, 0.5, 10),
        (2, 1e9, 0.5, 86_400),
        (3, 70, 0.5, None),
    ],
)
def test_delay_before_the_next_attempt(
    attempt: int, retry_after: float | None, draw: float, delay: float | None
) -> None:
    assert next_delay(attempt, (0, 10, 100), retry_after, lambda: draw) == delay


def test_default_schedule_is_twelve_attempts_over_three_days() -> None:
    schedule = Settings().webhook_retry_seconds

    assert len(schedule) == 12
    assert sum(schedule) > 72 * 3600


def test_claim_carries_all_that_an_attempt_takes(db: Database) -> None:
    made = endpoint(db, old_secret=new_secret(), old_secret_until=now() + 60)
    happen(db, "batch_1")

    (held,) = claim(db)

    assert (held.url, held.secrets, held.attempt, held.sequence) == (
        made.url,
        (made.secret, made.old_secret),
        1,
        1,
    )
    assert b'"type":"batch.completed","data":{"id":"batch_1"}' in held.body


def test_claim_names_the_request_that_created_the_job(db: Database) -> None:
    endpoint(db)
    job(db, "batch_1-0")
    with db.write() as session:
        session.execute(update(Job).values(request_id="ticket-4711"))
    happen(db, "batch_1")
    happen(db, "an endpoint, which no request is about")

    claims = claim(db)

    assert [claim.request_id for claim in claims] == ["ticket-4711", None]


def test_old_secret_signs_no_longer_than_its_time(db: Database) -> None:
    made = endpoint(db, old_secret=new_secret(), old_secret_until=now() - 1)
    happen(db, "batch_1")

    assert claim(db)[0].secrets == (made.secret,)


def test_delivery_is_claimed_once(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")

    assert len(claim(db, "io-1")) == 1
    assert claim(db, "io-2") == []


def test_lane_takes_no_more_than_its_share_and_others_get_theirs(db: Database) -> None:
    endpoint(db, "we_1")
    happen(db, "batch_1", 100)
    endpoint(db, "we_2")
    happen(db, "batch_2", 1)

    first, second = claim(db), claim(db)

    assert sorted(held.lane for held in first) == ["we_1", "we_1", "we_2"]
    assert second == []


def test_one_off_webhooks_to_same_url_share_lane(db: Database) -> None:
    for name in ("batch_1", "batch_2", "batch_3"):
        happen(db, name, of=job(db, name, "https://hang.example.com/"))

    assert [held.lane for held in claim(db)] == ["https://hang.example.com/"] * 2


def test_allowance_replaces_the_share_of_a_lane(db: Database) -> None:
    endpoint(db, "we_1")
    endpoint(db, "we_2")
    happen(db, "batch_1", 5)

    lanes = [held.lane for held in claim(db, per_endpoint=3, allowances={"we_1": 0})]

    assert lanes == ["we_2"] * 3


def test_claim_returns_requested_number_of_deliveries(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 20)

    assert len(claim(db, limit=7, per_endpoint=100)) == 7


def test_future_delivery_is_not_due(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        session.execute(update(Delivery).values(due_at=now() + 60))

    assert claim(db) == []


@pytest.mark.parametrize(
    ("attempts", "ahead", "brought"),
    [(0, 30, 0), (0, 3600, 1), (0, 86_400, 1), (1, 3600, 0), (1, 86_000, 0), (1, 200_000, 1), (0, PARKED_UNTIL, 0)],
)
def test_a_delivery_that_is_due_later_than_it_can_be_is_brought_forward(
    db: Database, attempts: int, ahead: float, brought: int
) -> None:
    """A process whose clock was a day ahead enqueued it."""
    endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        session.execute(update(Delivery).values(due_at=min(now() + ahead, PARKED_UNTIL), attempts=attempts))

    with db.write() as session:
        late = outcomes.overdue_deliveries(session, CONFIG, 100)
        assert outcomes.bring_forward(session, late) == brought

    assert len(claim(db)) == brought


def test_success_ends_the_delivery_and_is_logged(db: Database) -> None:
    endpoint(db, failing_since=now() - 5)
    happen(db, "batch_1")
    (held,) = claim(db)

    assert record(db, held, OK) == 1

    done = only(db)
    assert (done.state, done.attempts, done.status_code, done.worker_id) == ("delivered", 1, 200, None)
    assert done.delivered_at is not None
    with db.read() as session:
        log = deliveries.attempts(session, [done.id])[done.id]
        assert [(one.n, one.status_code) for one in log] == [(1, 200)]
        assert session.get_one(WebhookEndpoint, "we_1").failing_since is None


def test_the_time_from_an_event_to_its_acceptance_is_counted_once(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    fail_now(db)
    with db.write() as session:
        session.execute(update(Delivery).values(due_at=0.0))
    (held,) = claim(db)
    accepted = replace(OK, at=only(db).created_at + 40, seconds=2.0)

    for _ in range(2):  # the answer to the first was lost
        with db.write() as session:
            outcomes.record(session, [(held, accepted)], CONFIG, middle)

    with db.read() as session:
        counted = [(row.name, row.le, row.count, row.seconds) for row in measures.rows(session)]
    assert counted == [(measures.WEBHOOK, "60.0", 1, pytest.approx(42.0))]


def test_failed_delivery_is_retried_until_schedule_is_exhausted(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")

    waits = []
    for at in (now(), now() + 1):
        fail_now(db, at=at)
        waits.append(round(only(db).due_at - at))
    fail_now(db)

    ended = only(db)
    assert waits == [10, 100]
    assert (ended.state, ended.attempts, ended.error) == ("failed", 3, "status 500")
    with db.read() as session:
        assert [one.n for one in deliveries.attempts(session, [ended.id])[ended.id]] == [1, 2, 3]


def test_retry_after_is_honoured(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")

    at = now()
    fail_now(db, AttemptOutcome(429, "status 429", 33.0, 0.01), at)

    assert round(only(db).due_at - at) == 33


def test_late_outcome_of_a_lost_claim_changes_nothing(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (old,) = claim(db)
    with db.write() as session:
        assert revoke_claims(session, "io-1") == 1
    (new,) = claim(db, "io-1")

    assert record(db, old, OK) == 0

    assert (only(db).state, new.epoch) == ("pending", old.epoch + 2)
    with db.read() as session:
        assert session.scalars(select(Attempt)).all() == []


def test_outcome_recorded_twice_counts_once(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (held,) = claim(db)

    assert [record(db, held, BROKEN), record(db, held, BROKEN)] == [1, 0]
    assert only(db).attempts == 1


def test_revoke_spares_claims_reported_by_worker(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 2)
    kept, lost = claim(db)
    with db.write() as session:
        assert revoke_claims(session, "io-1", keep=[kept]) == 1

    assert [again.id for again in claim(db, "io-2")] == [lost.id]


def test_revoke_frees_claim_unknown_to_its_worker(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (known,) = claim(db)
    with db.write() as session:
        release_claims(session, [known])
    claim(db)  # a commit whose answer was lost
    with db.write() as session:
        assert revoke_claims(session, "io-1", keep=[known]) == 1

    assert [again.id for again in claim(db, "io-2")] == [known.id]


def test_claim_given_back_is_due_at_once_and_counts_no_attempt(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        release_claims(session, claim_due(session, "io-1"))

    assert claim(db, "io-2")[0].attempt == 1


def test_orphans_are_the_holders_that_are_not_registered(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 4)
    claim(db, "io-dead")
    claim(db, "io-live")
    with db.write() as session:
        session.add(worker_row("io-live", queues=[]))

    with db.read() as session:
        assert orphans(session) == ["io-dead"]


def test_two_workers_at_once_never_hold_the_same_delivery(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 60)
    held: dict[str, list[str]] = {}

    def work(worker: str) -> None:
        mine: list[DeliveryClaim] = []
        while found := claim(db, worker, limit=5, per_endpoint=100):
            mine += found
        held[worker] = [one.id for one in mine]

    threads = [threading.Thread(target=work, args=(f"io-{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    everything = [one for ids in held.values() for one in ids]
    assert len(everything) == len(set(everything)) == 60


def test_query_for_due_deliveries_uses_the_partial_index(sqlite: Database) -> None:
    """PostgreSQL plans by statistics, of which an empty table has none."""
    with sqlite.read() as session:
        plan = session.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT min(due_at) FROM delivery"
                " WHERE delivery.state = 'pending' AND delivery.worker_id IS NULL"
            )
        ).all()
        statement = str(select(Delivery.due_at).where(deliveries.WAITING))

    assert "ix_delivery_due" in str(plan)
    assert "delivery.state = 'pending' AND delivery.worker_id IS NULL" in statement


def test_events_without_listeners_enqueue_nothing(db: Database) -> None:
    happen(db, "batch_1", of=job(db))

    with db.read() as session:
        assert deliveries.due_count(session) == 0
        assert len(session.scalars(select(Event)).all()) == 1


def test_deliveries_that_are_not_accepted_are_counted_by_their_state(db: Database) -> None:
    row: dict[str, Any] = {"project_id": "p", "event_id": "evt", "endpoint_id": "we", "due_at": 1.0, "created_at": 1.0}
    states = [("pending", None), ("pending", "w"), ("failed", None), ("delivered", None), ("delivered", None)]
    with db.write() as session:
        for n, (state, worker_id) in enumerate(states):
            session.add(Delivery(id=f"wh_{n}", state=state, worker_id=worker_id, **row))

    with db.read() as session:
        assert deliveries.count_unfinished(session) == {"pending": 2, "failed": 1}


def test_count_of_unfinished_deliveries_uses_partial_indexes(sqlite: Database) -> None:
    with explained(sqlite) as plans, sqlite.read() as session:
        deliveries.count_unfinished(session)

    assert len(plans) == 3
    assert all(name in plan for name, plan in zip(("due", "claimed", "failed"), plans, strict=True)), plans
