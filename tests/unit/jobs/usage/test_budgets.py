"""Budgets: what counts towards a limit, who is refused, and that no number of requests at once passes it."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from sqlalchemy import event, func, select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, SpendLimitReached
from jobs.ledger import ledger, shards
from jobs.ledger.outbox import SPEND_LIMIT
from jobs.ledger.tables import Audit, Job, Outbox, Shard
from jobs.queues import Queue, Task
from jobs.usage import budgets
from jobs.usage.budgets import ORGANIZATION, LimitedProjects
from jobs.usage.minutes import month_of
from jobs.usage.prices import Prices
from jobs.usage.tables import Price, Reservation, Spend, UsageChange
from tests.support import sample_jobs
from workers.runtime.usage_counter import FLUSH_SECONDS

CENT = budgets.MICROS_PER_CENT
FAR = 4_000_000_000.0


@dataclass
class Model:
    name: str
    cost_per_million_tokens: float | None


def resolve(name: str) -> Model | None:
    return {"tiny": Model("tiny", 1000.0), "alias": Model("tiny", 1000.0), "free": Model("free", None)}.get(name)


def limit(db: Database, owner: str, cents: int | None) -> None:
    with db.write() as session:
        budgets.change_limit(session, owner, cents, actor="operator")


def spend(db: Database, project: str, amount: int, month: int | None = None) -> None:
    with db.write() as session:
        session.merge(Spend(project_id=project, month=month_of(now()) if month is None else month, amount=amount))


def reserve(db: Database, name: str, project: str = "p", amount: int = CENT) -> str:
    """Return the code of the refusal; empty where there is none."""
    try:
        with db.write() as session:
            budgets.reserve(session, name, project, amount, FAR, Prices(session, resolve))
    except SpendLimitReached as error:
        return str(error.code)
    return ""


def budget(db: Database, owner: str) -> budgets.Budget:
    with db.read() as session:
        return budgets.budget_of(session, owner, resolve)


def hold_back(db: Database, job_id: str, n: int = 0) -> bool:
    with db.write() as session:
        return budgets.hold_back(session, job_id, n, resolve)


def test_month_begins_at_midnight_utc() -> None:
    last = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()

    assert month_of(last) == datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    assert month_of(last + 1) == datetime(2026, 12, 1, tzinfo=UTC).timestamp()


@pytest.mark.dialects
def test_limits_of_project_and_organization_both_refuse(db: Database) -> None:
    limit(db, "p", 3)
    limit(db, ORGANIZATION, 5)
    spend(db, "p", 2 * CENT)
    spend(db, "p", 99 * CENT, month=month_of(now()) - 1)

    assert reserve(db, "r1") == ""
    assert reserve(db, "r2") == "project_spend_limit_exceeded"

    spend(db, "q", 2 * CENT)

    assert reserve(db, "r3", project="q") == "organization_spend_limit_exceeded"
    assert budget(db, "p") == budgets.Budget("p", 3 * CENT, CENT, 2 * CENT)
    assert budget(db, ORGANIZATION) == budgets.Budget(ORGANIZATION, 5 * CENT, CENT, 4 * CENT)


@pytest.mark.dialects
def test_unfolded_usage_of_this_month_counts(db: Database) -> None:
    limit(db, "p", 3)
    minute, before = int(now()), month_of(now()) - 60
    row = ["p", "", "alias", "/v1/embeddings", True, "default", "", 1, 20, 0, 10, 0, 0.0]
    with db.write() as session:
        session.add(UsageChange(rows=[[minute, *row], [before, *row], [minute, "q", *row[1:]]]))

    assert budget(db, "p").spent == 30 * 1000
    assert reserve(db, "r") == "project_spend_limit_exceeded"


@pytest.mark.dialects
def test_nothing_begins_while_too_much_usage_waits_to_be_added_up(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "MAX_CHANGES", 1)
    limit(db, "p", 3)
    with db.write() as session:
        session.add(UsageChange(rows=[]))
    assert reserve(db, "r1") == ""

    with db.write() as session:
        session.add(UsageChange(rows=[]))
    with pytest.raises(DatabaseBusy, match="added up"):
        reserve(db, "r2")


def test_reservation_reads_prices_and_changes_once(sqlite: Database) -> None:
    limit(sqlite, "p", 3)
    limit(sqlite, ORGANIZATION, 3)
    read = Counter[str]()

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        read.update(table for table in ("price", "usage_change") if f"FROM {table} " in statement.replace("\n", " "))

    event.listen(sqlite.engine, "before_cursor_execute", count)
    try:
        assert reserve(sqlite, "r") == ""
    finally:
        event.remove(sqlite.engine, "before_cursor_execute", count)

    assert read == {"price": 1, "usage_change": 1}


@pytest.mark.parametrize("kind", ["input", "output"])
def test_model_with_half_a_price_is_named(sqlite: Database, kind: str) -> None:
    with sqlite.write() as session:
        session.add(Price(model="free", kind=kind, since=1, usd_per_million=2.0, created_at=1.0))
    models = [Model("tiny", 1000.0), Model("free", None)]

    with sqlite.read() as session:
        assert budgets.models_without_price(session, models, resolve) == ["free"]


def test_prices_of_sql_precede_those_of_the_models_file(sqlite: Database) -> None:
    facts = {"model": "tiny", "created_at": 1.0}
    with sqlite.write() as session:
        session.add(Price(kind="input", since=5, usd_per_million=2.0, **facts))
        session.add(Price(kind="output", since=5, usd_per_million=8.0, **facts))
        session.add(Price(kind="output", since=int(FAR), usd_per_million=99.0, **facts))
    with sqlite.read() as session:
        prices = Prices(session, resolve)
    costs = [budgets.cost(prices, name, input_tokens=10, output_tokens=1) for name in ("alias", "free")]

    assert costs == [28, 0]


@pytest.mark.dialects
def test_requests_at_once_exceed_the_limit_by_a_single_admission(db: Database) -> None:
    limit(db, "p", 100)
    limit(db, ORGANIZATION, 150)
    amount = 3 * CENT
    with ThreadPoolExecutor(16) as threads:
        refusals = list(threads.map(lambda n: reserve(db, f"r{n}", "pq"[n % 2], amount), range(200)))

    reserved = [budget(db, owner).reserved for owner in ("p", ORGANIZATION)]
    assert reserved[0] <= 100 * CENT + amount
    assert 150 * CENT <= reserved[1] < 150 * CENT + amount
    assert refusals.count("") == reserved[1] // amount
    assert set(refusals) >= {"", "organization_spend_limit_exceeded"}


def test_reservation_of_an_answered_request_outlasts_a_flush_of_usage() -> None:
    assert FLUSH_SECONDS < budgets.RECORDED_SECONDS <= 2 * FLUSH_SECONDS


def test_settled_reservation_shrinks_and_expires(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(sqlite, "answered")
    reserve(sqlite, "refused")
    with sqlite.write() as session:
        budgets.settle(session, "answered", 7)
        budgets.release(session, "refused")

    assert budget(sqlite, "p").reserved == 7

    at = now() + budgets.RECORDED_SECONDS + 1
    monkeypatch.setattr(budgets, "now", lambda: at)
    with sqlite.write() as session:
        assert budgets.has_expired(session)
        assert budgets.budget_of(session, "p", resolve).reserved == 0
        assert budgets.purge_reservations(session) == 1
        assert session.scalar(select(func.count()).select_from(Reservation)) == 0


def test_limit_is_replaced_and_removed_with_audit_rows(sqlite: Database) -> None:
    limit(sqlite, "p", 3)
    limit(sqlite, "p", 4)
    assert budget(sqlite, "p").limit == 4 * CENT
    limit(sqlite, "p", None)
    limit(sqlite, "p", None)

    with sqlite.read() as session:
        rows = session.execute(select(Audit.action, Audit.details).order_by(Audit.id)).all()
    assert budget(sqlite, "p").limit is None
    assert [tuple(row) for row in rows] == [
        ("spend_limit.update", {"threshold_amount": 3}),
        ("spend_limit.update", {"threshold_amount": 4}),
        ("spend_limit.delete", None),
    ]


def test_limited_projects_are_refreshed_after_expiry(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = LimitedProjects()
    assert limited.is_stale
    with sqlite.read() as session:
        assert limited.refresh(session) == frozenset()
    limit(sqlite, "p", 1)
    with sqlite.read() as session:
        assert limited.refresh(session) == frozenset()
    assert not limited.is_stale

    monkeypatch.setattr(budgets, "_CACHED_SECONDS", 0.0)
    limited = LimitedProjects()
    with sqlite.read() as session:
        limited.refresh(session)
    assert (limited.has("p"), limited.has("q")) == (True, False)

    limit(sqlite, ORGANIZATION, 1)
    with sqlite.read() as session:
        limited.refresh(session)
    assert limited.has("q")


# -- shards


@pytest.fixture
def job(db: Database) -> Job:
    """Return a job with two shards of four lines: 40 bytes, and 100 tokens of answers each."""
    made = sample_jobs.running(db, (4, 4))
    with db.write() as session:
        session.execute(update(Shard).values(max_output_tokens=100))
    return made


@pytest.mark.dialects
def test_running_shard_reserves_the_cost_of_open_lines(db: Database, job: Job) -> None:
    whole = (10 + 100) * 1000
    assert budget(db, job.project_id).reserved == 0

    claim = sample_jobs.claim_shard(db, job.id)
    assert budget(db, job.project_id).reserved == budget(db, ORGANIZATION).reserved == whole

    sample_jobs.answer(db, claim, [0, 1])
    assert budget(db, job.project_id).reserved == whole // 2


@pytest.mark.parametrize(
    "end",
    [
        lambda db, claim: sample_jobs.answer(db, claim, range(4), last=True),
        lambda db, claim: sample_jobs.lose(db, claim.job.id),
        lambda db, claim: _write(db, lambda session: shards.release(session, claim)),
        lambda db, claim: _write(db, lambda session: shards.revoke_running(session, claim.job.id)),
    ],
    ids=["its last segment", "a lost lease", "a release", "a revocation"],
)
def test_reservation_of_a_shard_ends_with_the_claim(
    sqlite: Database, end: Callable[[Database, shards.ShardClaim], object]
) -> None:
    job = sample_jobs.running(sqlite, (4, 4))
    claim = sample_jobs.claim_shard(sqlite, job.id)
    assert budget(sqlite, job.project_id).reserved == 10 * 1000

    end(sqlite, claim)

    assert budget(sqlite, job.project_id).reserved == 0


def _write(db: Database, work: Callable[..., object]) -> None:
    with db.write() as session:
        work(session)


@pytest.mark.dialects
def test_job_waits_at_the_limit_and_continues_after_a_raise(db: Database, job: Job) -> None:
    limit(db, job.project_id, 1)
    assert not hold_back(db, job.id, 0)
    sample_jobs.claim_shard(db, job.id, 0)  # reserves more than the limit: the last that is admitted

    assert hold_back(db, job.id, 1)
    assert not releasable(db)
    with db.read() as session:
        assert session.get_one(Job, job.id).waiting_for == SPEND_LIMIT
        [message] = session.scalars(select(Outbox).where(Outbox.task == Task.RUN))
    assert (message.shard_n, message.published_at) == (1, None)

    limit(db, job.project_id, 1000)

    assert releasable(db) == [job.id]
    assert not hold_back(db, job.id, 1)


@pytest.mark.parametrize("change", ["limit removed", "month ends", "reservation ends"])
def test_waiting_job_is_released_after_a_change(sqlite: Database, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sample_jobs.running(sqlite)
    limit(sqlite, job.project_id, 1)
    if change == "reservation ends":
        reserve(sqlite, "request", job.project_id, CENT)
    else:
        spend(sqlite, job.project_id, CENT)
    assert hold_back(sqlite, job.id)
    assert not releasable(sqlite)

    if change == "limit removed":
        limit(sqlite, job.project_id, None)
    elif change == "month ends":
        at = now() + 32 * 86_400
        monkeypatch.setattr(budgets, "now", lambda: at)
    else:
        _write(sqlite, lambda session: budgets.release(session, "request"))

    assert releasable(sqlite) == [job.id]


def releasable(db: Database) -> list[str]:
    with db.read() as session:
        return budgets.jobs_to_release(session, resolve)


@pytest.mark.dialects
def test_as_many_waiting_jobs_are_released_as_the_limits_have_left(db: Database) -> None:
    old, second, third, others = (
        sample_jobs.running(db, (4, 4), created_at=float(at), project_id=project)
        for at, project in ((1, "p"), (2, "p"), (3, "p"), (4, "q"))
    )
    limit(db, "p", 1)
    limit(db, ORGANIZATION, 1)
    spend(db, "p", CENT)
    for job in (third, second, old, others):
        assert hold_back(db, job.id)
    assert releasable(db) == []

    limit(db, "p", 3)  # for two shards of a cent each
    assert releasable(db) == []

    limit(db, ORGANIZATION, None)
    assert releasable(db) == [old.id, second.id, others.id]

    limit(db, ORGANIZATION, 3)  # the oldest project precedes
    assert releasable(db) == [old.id, second.id]


@pytest.mark.postgres
@pytest.mark.dialects
def test_claim_that_waits_for_its_job_delays_no_request(postgres: Database) -> None:
    job = sample_jobs.running(postgres)
    limit(postgres, ORGANIZATION, 100)

    def claim() -> bool:
        with postgres.write() as session:
            return (
                not budgets.hold_back(session, job.id, 0, resolve) and shards.claim(session, job.id, 0, "w") is not None
            )

    with ThreadPoolExecutor(2) as threads:
        with postgres.write() as session:
            ledger.lock(session, job.id)
            claimed = threads.submit(claim)
            with pytest.raises(TimeoutError):
                claimed.result(0.5)

            assert threads.submit(reserve, postgres, "r").result(10) == ""
        assert claimed.result(60)


@pytest.mark.parametrize("queue", [Queue.EVALUATE, Queue.INGEST])
def test_shard_without_model_requests_is_not_refused(sqlite: Database, queue: Queue) -> None:
    job = sample_jobs.running(sqlite, on=queue)
    limit(sqlite, job.project_id, 1)
    spend(sqlite, job.project_id, CENT)

    assert not hold_back(sqlite, job.id)


@pytest.mark.postgres
@pytest.mark.dialects
def test_shards_claimed_at_once_exceed_the_limit_by_a_single_admission(postgres: Database) -> None:
    job = sample_jobs.running(postgres, (4,) * 24)
    each = 10 * 1000
    limit(postgres, job.project_id, 5)

    def claim(n: int) -> bool:
        with postgres.write() as session:
            if budgets.hold_back(session, job.id, n, resolve):
                return False
            return shards.claim(session, job.id, n, f"w{n}") is not None

    with ThreadPoolExecutor(12) as threads:
        claimed = sum(threads.map(claim, range(24)))

    assert claimed == 5
    assert budget(postgres, job.project_id).reserved == 5 * each
