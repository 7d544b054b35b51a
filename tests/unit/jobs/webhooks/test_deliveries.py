"""The ledger of deliveries, on SQLite and PostgreSQL: claims, outcomes, disabled endpoints, replay."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import Conflict, NotFound
from jobs.fleet.tables import Measure, Worker
from jobs.ledger import events, measures
from jobs.ledger.tables import Audit, Job
from jobs.settings import Settings
from jobs.webhooks import deliveries
from jobs.webhooks.deliveries import HELD, DeliveryClaim, Selection, claim_due, next_delay
from jobs.webhooks.sending import Outcome, new_secret
from jobs.webhooks.tables import Attempt, Delivery, Event, WebhookEndpoint
from tests.support.databases import KINDS, fresh, until_waiting

pytestmark = pytest.mark.dialects

CONFIG = Settings(webhook_retry_seconds=(0, 10, 100), webhook_disable_seconds=1000)
OK = Outcome(200, None, None, 0.01)
BROKEN = Outcome(500, "status 500", None, 0.01)
GONE = Outcome(410, "status 410", None, 0.01)


def middle() -> float:
    return 0.5


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh(request.param, tmp_path) as database:
        yield database


def endpoint(db: Database, name: str = "we_1", **fields: object) -> WebhookEndpoint:
    made = WebhookEndpoint(
        id=name,
        project_id="proj_1",
        name=name,
        url=f"https://{name.replace('_', '-')}.example.com/",
        event_types=["batch.completed", "webhook_endpoint.disabled"],
        secret=new_secret(),
        created_at=now(),
        **fields,
    )
    with db.write() as session:
        session.add(made)
    return made


def job(db: Database, name: str = "batch_1", url: str | None = None) -> Job:
    made = Job(
        id=name,
        project_id="proj_1",
        kind="generation",
        payload={},
        deadline=now() + 60,
        created_at=now(),
        webhook_url=url,
        webhook_secret=new_secret() if url else None,
    )
    with db.write() as session:
        session.add(made)
    return made


def happen(db: Database, subject: str, count: int = 1, of: Job | None = None) -> None:
    """`batch.completed`, `count` times, as the ledger writes it."""
    with db.write() as session:
        for n in range(count):
            event = events.record(
                session,
                subject_id=f"{subject}-{n}",
                seq=1,
                project_id="proj_1",
                type="batch.completed",
                data={"id": subject},
            )
            session.flush()
            events.fan_out(session, event, of)


def claim(db: Database, worker: str = "io-1", **limits: object) -> list[DeliveryClaim]:
    with db.write() as session:
        return claim_due(session, worker, **limits)  # type: ignore[arg-type]


def record(db: Database, claim: DeliveryClaim, outcome: Outcome, at: float | None = None) -> int:
    """Record an attempt that began at `at`, or now."""
    with db.write() as session:
        return deliveries.record(session, [(claim, replace(outcome, at=at or now()))], CONFIG, middle)


def only(db: Database) -> Delivery:
    with db.read() as session:
        return session.scalars(select(Delivery)).one()


def hurry(session: Session) -> None:
    """Make everything that waits due now."""
    session.execute(update(Delivery).where(Delivery.due_at < HELD).values(due_at=now()))


def fail_now(db: Database, outcome: Outcome = BROKEN, at: float | None = None) -> None:
    """Fail one attempt of the one delivery there is."""
    with db.write() as session:
        hurry(session)
    (held,) = claim(db)
    assert record(db, held, outcome, at) == 1


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


def test_one_off_webhooks_to_one_url_are_one_lane(db: Database) -> None:
    for name in ("batch_1", "batch_2", "batch_3"):
        happen(db, name, of=job(db, name, "https://hang.example.com/"))

    assert [held.lane for held in claim(db)] == ["https://hang.example.com/"] * 2


def test_allowance_replaces_the_share_of_a_lane(db: Database) -> None:
    endpoint(db, "we_1")
    endpoint(db, "we_2")
    happen(db, "batch_1", 5)

    lanes = [held.lane for held in claim(db, per_endpoint=3, allowances={"we_1": 0})]

    assert lanes == ["we_2"] * 3


def test_claims_are_as_many_as_asked_for(db: Database) -> None:
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
    [(0, 30, 0), (0, 3600, 1), (0, 86_400, 1), (1, 3600, 0), (1, 86_000, 0), (1, 200_000, 1), (0, HELD, 0)],
)
def test_a_delivery_that_is_due_later_than_it_can_be_is_brought_forward(
    db: Database, attempts: int, ahead: float, brought: int
) -> None:
    """A process whose clock was a day ahead enqueued it."""
    endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        session.execute(update(Delivery).values(due_at=min(now() + ahead, HELD), attempts=attempts))

    with db.write() as session:
        late = deliveries.too_late(session, CONFIG, 100)
        assert deliveries.bring_forward(session, late) == brought

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
            deliveries.record(session, [(held, accepted)], CONFIG, middle)

    with db.read() as session:
        counted = session.execute(select(Measure.name, Measure.le, Measure.count, Measure.seconds)).all()
    assert [tuple(row) for row in counted] == [(measures.WEBHOOK, "60.0", 1, pytest.approx(42.0))]


def test_failure_makes_it_due_again_by_the_schedule_until_that_is_used_up(db: Database) -> None:
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
    fail_now(db, Outcome(429, "status 429", 33.0, 0.01), at)

    assert round(only(db).due_at - at) == 33


def test_late_outcome_of_a_lost_claim_changes_nothing(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (old,) = claim(db)
    with db.write() as session:
        assert deliveries.revoke_claims(session, "io-1") == 1
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


def test_take_back_spares_what_the_worker_says_it_holds(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 2)
    kept, lost = claim(db)
    with db.write() as session:
        assert deliveries.revoke_claims(session, "io-1", keep=[kept]) == 1

    assert [again.id for again in claim(db, "io-2")] == [lost.id]


def test_take_back_frees_what_the_worker_holds_anew_without_knowing(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (known,) = claim(db)
    with db.write() as session:
        deliveries.release_claims(session, [known])
    claim(db)  # a commit whose answer was lost
    with db.write() as session:
        assert deliveries.revoke_claims(session, "io-1", keep=[known]) == 1

    assert [again.id for again in claim(db, "io-2")] == [known.id]


def test_claim_given_back_is_due_at_once_and_counts_no_attempt(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        deliveries.release_claims(session, claim_due(session, "io-1"))

    assert claim(db, "io-2")[0].attempt == 1


def test_orphans_are_the_holders_that_are_not_registered(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 4)
    claim(db, "io-dead")
    claim(db, "io-live")
    with db.write() as session:
        session.add(
            Worker(
                id="io-live",
                pool="io",
                host="h",
                pid=1,
                started=1,
                queues=[],
                models=[],
                slots=1,
                created_at=0,
                seen_at=0,
            )
        )

    with db.read() as session:
        assert deliveries.orphans(session) == ["io-dead"]


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


def test_one_off_webhook_that_is_gone_fails_at_once(db: Database) -> None:
    happen(db, "batch_1", of=job(db, url="https://one-off.example.com/"))

    fail_now(db, GONE)

    assert only(db).state == "failed"


def test_endpoint_that_only_failed_for_long_is_disabled(db: Database) -> None:
    endpoint(db, "we_old", failing_since=now() - 1001)
    happen(db, "batch_1")
    fail_now(db)

    endpoint(db, "we_new", failing_since=now() - 999)
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


def test_what_a_disabled_endpoint_has_pending_is_held_and_goes_out_when_it_is_enabled(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 3)
    with db.write() as session:
        deliveries.disable(session, session.get_one(WebhookEndpoint, "we_1"), "gone")

    assert claim(db) == []
    with db.read() as session:
        assert deliveries.due_count(session) == 0
        assert deliveries.next_due(session) == HELD
    with db.write() as session:
        assert deliveries.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1") == 3
        assert deliveries.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1") == 0
    assert len(claim(db, per_endpoint=9)) == 3


def test_much_that_is_held_is_released_and_fails_in_pages(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "WRITE_ROWS", 2)
    for name in ("we_1", "we_2", "we_3"):
        endpoint(db, name)
    happen(db, "batch_1", 3)
    with db.write() as session:
        for name in ("we_1", "we_2", "we_3"):
            deliveries.disable(session, session.get_one(WebhookEndpoint, name), "gone")
        session.execute(update(Delivery).values(due_at=HELD))

    with db.write() as session:
        assert deliveries.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1") == 2
        deliveries.delete(session, session.get_one(WebhookEndpoint, "we_2"))
    with db.read() as session:
        failed = session.scalars(select(Delivery.endpoint_id).where(Delivery.state == "failed")).all()
        left, lost = deliveries.held_too_long(session, 9), deliveries.lost(session, 9)
        owners = [session.get_one(Delivery, name).endpoint_id for name in (*left, *lost)]
    with db.write() as session:
        assert deliveries.release(session, [*left, *left]) == len(left)
        assert deliveries.release(session, left) == 0

    assert failed == ["we_2"] * 2
    assert min(len(left), len(lost)) > 0
    assert owners == ["we_1"] * len(left) + ["we_2"] * len(lost)
    with db.read() as session:
        assert deliveries.held_too_long(session, 9) == []
        assert len(session.scalars(select(Delivery).where(Delivery.due_at >= HELD)).all()) > 2, "the third's is held on"


def test_late_answer_from_before_does_not_disable_an_endpoint_that_was_mended(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 2)
    first, late = claim(db)
    record(db, first, GONE)
    began = now()
    with db.write() as session:
        deliveries.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1")

        assert deliveries.record(session, [(late, replace(GONE, at=began))], CONFIG, middle) == 1

        assert session.get_one(WebhookEndpoint, "we_1").disabled_at is None


def test_backlog_of_a_disabled_endpoint_hides_nobody(db: Database) -> None:
    endpoint(db, "we_1")
    happen(db, "batch_1", 200)
    endpoint(db, "we_2")
    happen(db, "batch_2")
    with db.write() as session:
        deliveries.disable(session, session.get_one(WebhookEndpoint, "we_1"), "gone")

    assert "we_2" in {held.lane for held in claim(db)}


def test_delivery_of_a_deleted_endpoint_fails(db: Database) -> None:
    made = endpoint(db)
    happen(db, "batch_1")
    with db.write() as session:
        session.delete(session.get_one(WebhookEndpoint, made.id))

    assert claim(db) == []
    assert (only(db).state, only(db).error) == ("failed", "endpoint deleted")


def test_what_is_held_for_an_endpoint_fails_when_it_is_deleted(db: Database) -> None:
    endpoint(db, "we_1")
    endpoint(db, "we_2")
    happen(db, "batch_1")
    with db.write() as session:
        for name in ("we_1", "we_2"):
            deliveries.disable(session, session.get_one(WebhookEndpoint, name), "gone")
    assert claim(db) == []  # which holds them

    with db.write() as session:
        deliveries.delete(session, session.get_one(WebhookEndpoint, "we_1"))

    with db.read() as session:
        rows = {row.endpoint_id: (row.state, row.error) for row in session.scalars(select(Delivery))}
    assert rows == {"we_1": ("failed", "endpoint deleted"), "we_2": ("pending", None)}


def test_what_was_left_held_for_an_endpoint_that_is_gone_fails_and_nothing_else(db: Database) -> None:
    endpoint(db, "we_1")
    endpoint(db, "we_2")
    happen(db, "batch_1", 2)
    happen(db, "batch_2", of=job(db, "batch_2", "https://one-off.example.com/"))
    with db.write() as session:
        session.execute(update(Delivery).where(Delivery.endpoint_id.is_not(None)).values(due_at=HELD))
        session.delete(session.get_one(WebhookEndpoint, "we_1"))

    with db.write() as session:
        counts = [deliveries.fail_lost(session, deliveries.lost(session, 1)) for _ in range(4)]

    assert counts == [1, 1, 1, 0]
    with db.read() as session:
        failed = session.scalars(select(Delivery.endpoint_id).where(Delivery.state == "failed"))
        assert set(failed) == {"we_1"}


def test_replay_sends_again_under_the_same_id_from_the_first_attempt_on(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (held,) = claim(db)
    record(db, held, OK)

    with db.write() as session:
        assert deliveries.replay(session, "proj_1", "we_1", Selection(ids=(held.id,))) == [held.id]

    (again,) = claim(db)
    assert (again.id, again.attempt, again.body) == (held.id, 1, held.body)


def test_replay_of_a_time_range_takes_the_failed_ones(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1", 2)
    good, bad = claim(db)
    record(db, good, OK)
    with db.write() as session:
        session.execute(update(Delivery).where(Delivery.id == bad.id).values(state="failed", worker_id=None))

        assert deliveries.replay(session, "proj_1", "we_1", Selection(since=now() + 60)) == []
        assert deliveries.replay(session, "proj_1", "we_1", Selection(until=now() - 60)) == []
        assert deliveries.replay(session, "proj_1", "we_1", Selection(since=now() - 60)) == [bad.id]


def test_replay_enqueues_what_was_missed_while_disabled_once(db: Database) -> None:
    endpoint(db)
    with db.write() as session:
        deliveries.disable(session, session.get_one(WebhookEndpoint, "we_1"), "gone")
    happen(db, "batch_1", 2)
    with db.write() as session:
        deliveries.enable(session, session.get_one(WebhookEndpoint, "we_1"), actor="key:1")
    missed = Selection(since=now() - 60, missed=True)

    with db.write() as session:
        pending = deliveries.replay(session, "proj_1", "we_1", missed)
    with db.write() as session:
        again = deliveries.replay(session, "proj_1", "we_1", missed)

    # its own `webhook_endpoint.disabled` is among them: nobody could tell it then
    assert (len(pending), again) == (3, [])
    assert len(claim(db, per_endpoint=9)) == 3


@pytest.mark.postgres
def test_of_two_that_replay_what_was_missed_at_once_one_enqueues_it(postgres: Database) -> None:
    happen(postgres, "batch_1", 2)
    endpoint(postgres)
    missed = Selection(since=now() - 60, missed=True)

    def again() -> list[str]:
        with postgres.write() as session:
            return deliveries.replay(session, "proj_1", "we_1", missed)

    with ThreadPoolExecutor(1) as pool:
        with postgres.write() as session:
            pending = deliveries.replay(session, "proj_1", "we_1", missed)
            other = pool.submit(again)
            until_waiting(postgres, 1)

        assert len(pending) == 2
        assert other.result(timeout=30) == []
    with postgres.read() as session:
        assert len(session.scalars(select(Delivery)).all()) == 2


def test_replay_leaves_what_is_in_flight_alone(db: Database) -> None:
    endpoint(db)
    happen(db, "batch_1")
    (held,) = claim(db)

    with db.write() as session:
        assert deliveries.replay(session, "proj_1", "we_1", Selection(ids=(held.id,))) == []
    assert record(db, held, OK) == 1


def test_one_off_webhook_is_replayed_without_an_endpoint(db: Database) -> None:
    happen(db, "batch_1", of=job(db, url="https://one-off.example.com/"))
    fail_now(db, GONE)

    with db.write() as session:
        assert len(deliveries.replay(session, "proj_1", None, Selection())) == 1
    assert only(db).state == "pending"


def test_replay_to_a_disabled_endpoint_is_a_conflict(db: Database) -> None:
    endpoint(db, disabled_at=now(), disabled_reason="gone")

    with db.write() as session, pytest.raises(Conflict):
        deliveries.replay(session, "proj_1", "we_1", Selection())


@pytest.mark.parametrize(
    ("project", "name", "selection"),
    [
        ("proj_2", "we_1", Selection()),
        ("proj_1", "we_9", Selection()),
        ("proj_1", "we_1", Selection(ids=("wh_9",))),
    ],
)
def test_replay_of_what_is_not_there_or_not_yours_is_not_found(
    db: Database, project: str, name: str, selection: Selection
) -> None:
    endpoint(db)

    with db.write() as session, pytest.raises(NotFound):
        deliveries.replay(session, project, name, selection)


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
