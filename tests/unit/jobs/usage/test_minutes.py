"""Usage is recorded with the work, added up once, and priced by the minute."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.db.engine import Database
from jobs.ledger import shards
from jobs.ledger.shards import Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.registry import models
from jobs.usage import minutes, verification
from jobs.usage.minutes import CACHE, OTHER, TRAINING, Amounts, UsageKey
from jobs.usage.prices import set_prices
from jobs.usage.tables import Price, Spend, UsageChange, UsageMinute
from tests.support import sample_jobs
from tests.support.sample_jobs import at_once, rolled_back

NOVEMBER = int(datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp())
KEY = UsageKey("p", "k", "tiny", "/v1/chat/completions")
MODELS = {name: SimpleNamespace(name="tiny", cost_per_million_tokens=2.0) for name in ("tiny", "gpt-4o")}
TUNED = "ft:free:acme:support:1"
MODELS["free"] = MODELS[TUNED] = SimpleNamespace(name="free", cost_per_million_tokens=None)


def resolve(name: str) -> Any:
    return MODELS.get(name)


def record(db: Database, key: UsageKey = KEY, at: float = NOVEMBER, **amounts: int) -> None:
    with db.write() as session:
        minutes.record(session, key, Amounts(**amounts), at)


def fold(db: Database, limit: int = 200) -> int:
    with db.write() as session:
        return minutes.fold(session, resolve, limit)


def rows(db: Database) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    with db.read() as session:
        stored = session.scalars(select(UsageMinute)).all()
    return {
        (row.minute, row.model, row.endpoint, row.subject): (
            row.requests, row.input_tokens, row.cached_tokens, row.output_tokens, row.cost
        )
        for row in stored
    }  # fmt: skip


def spend(db: Database) -> dict[tuple[str, int], int]:
    with db.read() as session:
        return {(row.project_id, row.month): row.amount for row in session.scalars(select(Spend))}


def set_price(db: Database, since: int, model: str = "tiny", **prices: float) -> None:
    with db.write() as session:
        set_prices(session, model, prices, since, actor="operator")


def price_rows(db: Database, model: str, since: int, limit: int = 1) -> int:
    count, after = 0, minutes.FIRST
    while after is not None:
        with db.write() as session:
            some, after = minutes.price_rows(session, resolve, model, since, after, limit)
        count += some
    return count


def test_changes_are_added_up_once_by_however_many_at_once(db: Database) -> None:
    for _ in range(5):
        record(db, requests=1, input_tokens=10, output_tokens=3)
    with rolled_back(db) as session:
        assert minutes.fold(session, resolve) == 5

    at_once(3, lambda _: fold(db, 2))
    while fold(db, 2):
        pass

    assert rows(db) == {(NOVEMBER, "tiny", KEY.endpoint, ""): (5, 50, 0, 15, 130)}
    with db.read() as session:
        assert not minutes.has_changes(session)


def test_transaction_that_is_rolled_back_records_nothing(db: Database) -> None:
    with rolled_back(db) as session:
        minutes.record(session, KEY, Amounts(1, 2), NOVEMBER)

    with db.read() as session:
        assert session.scalars(select(UsageChange)).all() == []


def test_transaction_writes_a_single_change(db: Database) -> None:
    with db.write() as session:
        for at in (NOVEMBER, NOVEMBER + 59.9, NOVEMBER + 60):
            minutes.record(session, KEY, Amounts(1, 2), at)

    with db.read() as session:
        [change] = session.scalars(select(UsageChange))
    assert [row[0] for row in change.rows] == [NOVEMBER, NOVEMBER + 60]


def test_roundings_do_not_add_up(db: Database) -> None:
    set_price(db, 0, input=0.25, output=0.25)
    for _ in range(10):
        record(db, requests=1, input_tokens=1)
        fold(db)

    [(*_, cost)] = rows(db).values()
    assert cost == 2  # 10 tokens at a quarter of a millionth each: 2.5, and the even one of its neighbours


def test_models_have_the_names_of_the_models_file(db: Database) -> None:
    for name in ("gpt-4o", "tiny", "=what a client wrote", ""):
        record(db, KEY._replace(model=name), requests=1)
    fold(db)

    assert {model: row[0] for (_, model, _, _), row in rows(db).items()} == {"tiny": 2, OTHER: 1, "": 1}


def test_month_is_that_of_the_work_in_utc(db: Database) -> None:
    record(db, input_tokens=10)
    record(db, at=NOVEMBER + 60, input_tokens=100)
    fold(db)

    november, december = minutes.month_of(NOVEMBER), minutes.month_of(NOVEMBER + 60)
    assert spend(db) == {("p", november): 20, ("p", december): 200}
    assert (november, december) == (int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()), NOVEMBER + 60)


@pytest.mark.parametrize(
    ("key", "amounts", "cost"),
    [
        (KEY, Amounts(1, 100, 40, 10), 60 * 3 + 40 * 1 + 10 * 5),
        (KEY._replace(subject=CACHE), Amounts(1, 100, 100, 10), 0),
        (KEY._replace(endpoint=TRAINING), Amounts(0, 1000, device_seconds=2.5), 7000),
        (KEY._replace(model="free"), Amounts(1, 100), None),
        (KEY._replace(model="free"), Amounts(1), None),
        (KEY._replace(model="unknown"), Amounts(1, 100), None),
        (KEY._replace(model="", endpoint="/v1/vector_stores/search"), Amounts(1), 0),
    ],
)
def test_cost_is_that_of_each_kind_of_tokens(db: Database, key: UsageKey, amounts: Amounts, cost: int | None) -> None:
    set_price(db, 0, input=3.0, cached=1.0, output=5.0, training=7.0)
    with db.write() as session:
        minutes.record(session, key, amounts, NOVEMBER)
    fold(db)

    [row] = rows(db).values()
    assert row[-1] == cost
    assert sum(spend(db).values()) == (cost or 0)


def test_price_change_leaves_earlier_costs(db: Database) -> None:
    record(db, input_tokens=10)
    fold(db)

    set_price(db, NOVEMBER - 60, input=100.0, output=100.0)
    assert price_rows(db, "tiny", NOVEMBER - 60) == 0
    record(db, input_tokens=1)
    fold(db)

    assert [row[-1] for row in rows(db).values()] == [20 + 100]


def test_price_reaches_back_to_usage_without_a_cost(db: Database) -> None:
    for minute in range(4):
        record(db, KEY._replace(model="free"), NOVEMBER - 60 * minute, input_tokens=10)
    fold(db)
    since = NOVEMBER - 120
    set_price(db, since, "free", input=1.0, output=1.0)

    assert price_rows(db, "free", since) == 3
    assert min(rows(db).items())[1][-1] is None
    assert spend(db) == {("p", minutes.month_of(NOVEMBER)): 30}


@pytest.mark.parametrize("change", ["output without a price", "no price in the models file"])
def test_cost_stays_where_a_price_is_missing_later(db: Database, change: str) -> None:
    if change == "output without a price":
        with db.write() as session:
            session.add(Price(model="free", kind="input", since=0, usd_per_million=2.0, created_at=1.0))
    key = KEY._replace(model="free" if change == "output without a price" else "tiny")
    record(db, key, input_tokens=10)
    fold(db)
    record(db, key, input_tokens=5, output_tokens=1)
    with db.write() as session:
        minutes.fold(session, lambda name: SimpleNamespace(name=name, cost_per_million_tokens=None))

    [row] = rows(db).values()
    assert (row[1], row[-1]) == (15, 20)
    assert spend(db) == {("p", minutes.month_of(NOVEMBER)): 20}


def test_fold_ends_after_a_number_of_rows(db: Database) -> None:
    for n in range(2):
        with db.write() as session:
            for key in "abc":
                minutes.record(session, KEY._replace(key_id=key), Amounts(1, n), NOVEMBER)

    assert [fold(db, 2), fold(db, 4), fold(db, 4)] == [1, 1, 0]


def test_tuned_model_keeps_its_name_and_costs_as_much_as_its_base(db: Database) -> None:
    tuned = KEY._replace(model=TUNED)
    with db.write() as session:
        models.register(
            session, name=TUNED, project_id="p", base="free", job_id="j", method="lora", location="l", sha256="0",
            manifest={},
        )  # fmt: skip
    record(db, tuned, input_tokens=10)
    fold(db)
    assert rows(db)[NOVEMBER, TUNED, KEY.endpoint, ""][-1] is None

    set_price(db, 0, "free", input=1.0, output=1.0)
    assert price_rows(db, "free", 0) == 1
    record(db, tuned, input_tokens=10)
    fold(db)

    assert rows(db) == {(NOVEMBER, TUNED, KEY.endpoint, ""): (0, 20, 0, 0, 20)}


@pytest.mark.postgres
@pytest.mark.dialects
def test_price_reaches_usage_that_is_being_added_up(postgres: Database) -> None:
    record(postgres, KEY._replace(model="free"), input_tokens=10)
    with ThreadPoolExecutor(1) as threads:
        with postgres.write() as session:
            minutes.fold(session, resolve)
            set_price(postgres, 0, "free", input=1.0, output=1.0)
            priced = threads.submit(price_rows, postgres, "free", 0)
            with pytest.raises(TimeoutError):
                priced.result(0.5)

        assert priced.result(60) == 1
    assert sum(spend(postgres).values()) == 10


@pytest.mark.postgres
@pytest.mark.dialects
def test_first_costs_of_a_month_are_added_by_two_transactions(postgres: Database) -> None:
    month = "p", minutes.month_of(NOVEMBER)

    def add(amount: int) -> None:
        with postgres.write() as session:
            minutes.add_spend(session, {month: amount})

    with ThreadPoolExecutor(1) as threads:
        with postgres.write() as session:
            minutes.add_spend(session, {month: 1})
            other = threads.submit(add, 2)
            with pytest.raises(TimeoutError):
                other.result(0.5)
        other.result(60)
    assert spend(postgres) == {month: 3}


def test_usage_of_batch_segments_equals_the_ledger(db: Database) -> None:
    job = sample_jobs.running(db, lines=(4, 2), key_id="k1")
    sample_jobs.answer(db, sample_jobs.claim_shard(db, job.id, 0), range(4), last=True, bad=[1])
    claim = sample_jobs.claim_shard(db, job.id, 1)
    tally = Tally(0b11, 0b11, 0, 30, 20, 5, 1, requests=2)
    tally.from_cache.update(requests=1, input_tokens=20, cached_tokens=20, output_tokens=4)
    for _ in range(2):  # the answer to the first commit was lost
        with db.write() as session:
            shards.commit(session, claim, 0, "path", 9, tally, last=True)

    with db.read() as session:
        assert list(verification.differences(session, 0)) == []
    fold(db)
    with db.read() as session:
        stored = {(row.key_id, row.batch, row.subject): row for row in session.scalars(select(UsageMinute))}
        assert list(verification.differences(session, 0)) == []
    paid, free = stored["k1", True, ""], stored["k1", True, CACHE]
    assert (paid.requests, paid.input_tokens, paid.cached_tokens, paid.output_tokens) == (1, 12 + 10, 4, 8 + 1)
    assert (free.requests, free.input_tokens, free.cached_tokens, free.output_tokens, free.cost) == (1, 20, 20, 4, 0)


def test_verification_names_each_difference(db: Database) -> None:
    job = sample_jobs.running(db, key_id="k1")
    sample_jobs.answer(db, sample_jobs.claim_shard(db, job.id), range(4), last=True)
    fold(db)
    with db.write() as session:
        session.scalars(select(UsageMinute)).one().output_tokens += 1

    with db.read() as session:
        [difference] = verification.differences(session, 0)
        assert list(verification.differences(session, int(difference.group.day) + 86_400 * 2)) == []
    assert difference.group[1:] == ("proj_1", "k1", "/v1/chat/completions")
    assert (difference.ledger, difference.usage) == ((12, 4, 8, 4), (12, 4, 9, 4))


@pytest.mark.parametrize("end", [JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED])
def test_usage_of_a_job_that_ends_early_stays(db: Database, end: JobState) -> None:
    job = sample_jobs.running(db, lines=(4, 4))
    sample_jobs.answer(db, sample_jobs.claim_shard(db, job.id, 0), range(4), last=True)

    with db.write() as session:
        session.execute(update(Job).where(Job.id == job.id).values(state=end))
    fold(db)

    with db.read() as session:
        assert list(verification.differences(session, 0)) == []
        assert session.scalars(select(UsageMinute.output_tokens)).all() == [8]


def test_jobs_of_other_kinds_are_no_batches(db: Database) -> None:
    job = sample_jobs.running(db, kind="response", endpoint="/v1/responses", payload={"stream": False})
    sample_jobs.answer(db, sample_jobs.claim_shard(db, job.id), range(4))
    fold(db)

    with db.read() as session:
        [row] = session.scalars(select(UsageMinute))
        stored = session.get_one(Job, job.id)
    assert (row.batch, row.endpoint, row.input_tokens, row.project_id) == (
        False,
        "/v1/responses",
        12,
        stored.project_id,
    )
