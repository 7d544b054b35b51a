"""The judgement of usage, costs and limits finds each wrong sum."""

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import delete, update

from jobs.db.engine import Database
from jobs.fleet.tables import Model
from jobs.usage import minutes
from jobs.usage.minutes import CACHE, TRAINING
from jobs.usage.tables import Price, Spend, UsageMinute
from tests.chaos import judging_usage
from tests.chaos.journal import Journal
from tests.chaos.limited_projects import LimitedProjects, MeteredAnswer, MeteredClient
from tests.support import sample_jobs, usage_oracle
from tests.support.fake_engine import reply
from tests.support.system import MODEL
from tests.support.usage_oracle import LimitedBatch, SpendSample, Tokens, UsageRow

TOOK = Tokens(100, 20, 30, 5)
LESS, MORE = TOOK._replace(output=29), TOOK._replace(output=31)


@pytest.mark.parametrize(("usage", "faults"), [({"p": TOOK}, 0), ({"p": LESS}, 1), ({"p": MORE}, 1), ({}, 1)])
def test_usage_of_batches_that_differs_by_a_token_is_blamed(usage: dict[str, Tokens], faults: int) -> None:
    assert len(list(usage_oracle.usage_differences({"p": TOOK}, usage))) == faults


def test_usage_without_jobs_is_blamed() -> None:
    assert len(list(usage_oracle.usage_differences({}, {"p": TOOK}))) == 1


@pytest.mark.parametrize(("usage", "faults"), [(TOOK, 0), (MORE, 0), (LESS, 1), (TOOK._replace(cached=0), 1)])
def test_usage_below_the_tokens_of_its_jobs_is_blamed(usage: Tokens, faults: int) -> None:
    owner = "p", "/v1/responses"

    assert len(list(usage_oracle.missing_usage({owner: TOOK}, {owner: usage}))) == faults
    assert len(list(usage_oracle.missing_usage({owner: TOOK}, {}))) == 1


@pytest.mark.parametrize(("usage", "words"), [(TOOK, ""), (LESS, "before the first fault"), (MORE, "counted twice")])
def test_usage_outside_of_its_bounds_is_blamed(usage: Tokens, words: str) -> None:
    faults = list(usage_oracle.usage_outside("all work", usage, least=TOOK, given=TOOK))

    assert [words in fault for fault in faults] == [True] * bool(words)


def row(**changes: Any) -> UsageRow:
    values: dict[str, Any] = {
        "project_id": "p", "month": 0, "model": MODEL, "endpoint": "/v1/chat/completions", "subject": "",
        "tokens": TOOK, "cost": 80 * 100 + 20 * 50 + 30 * 200,
    }  # fmt: skip
    return UsageRow(**values | changes)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"cost": 15_001}, {}),
        ({"cost": None}, {}),
        ({"cost": 0, "model": "unpriced"}, {"cost": None, "model": "unpriced"}),
        ({"cost": 0, "endpoint": TRAINING}, {"cost": None, "endpoint": TRAINING}),
        ({"subject": CACHE}, {"cost": 0, "subject": CACHE}),
        ({"model": ""}, {"cost": 0, "model": ""}),
    ],
)
def test_row_that_does_not_cost_its_tokens_is_blamed(wrong: dict[str, Any], right: dict[str, Any]) -> None:
    spend = {("p", 0): row(**right).cost or 0}

    assert list(usage_oracle.wrong_costs([row(**right)], spend)) == []
    assert len(list(usage_oracle.wrong_costs([row(**wrong)], spend))) == 1


@pytest.mark.parametrize(
    "spend", [{("p", 0): 30_001}, {("p", 0): 15_000}, {}, {("p", 0): 30_000, ("q", 0): 1}, {("p", 1): 30_000}]
)
def test_spend_that_is_not_the_sum_of_costs_is_blamed(spend: dict[tuple[str, int], int]) -> None:
    rows = [row(), row(endpoint="/v1/responses")]

    assert list(usage_oracle.wrong_costs(rows, {("p", 0): 30_000})) == []
    assert list(usage_oracle.wrong_costs(rows, spend))


@pytest.mark.parametrize(("spent", "faults"), [(900, 0), (1100, 0), (1101, 1)])
def test_spending_above_the_limit_and_its_bound_is_blamed(spent: int, faults: int) -> None:
    samples = [SpendSample(500, 400), SpendSample(1000, spent)]

    assert len(list(usage_oracle.excess_spending(samples, 100))) == faults


def test_shard_costs_more_than_the_engine_takes_for_its_lines() -> None:
    batch = LimitedBatch("b", "/v1/responses", MODEL, {str(n): f"Say {n:012x} to b-{n:03d}" for n in range(32)})

    taken = usage_oracle.sum_tokens(map(usage_oracle.tokens_of, batch.prompts.values())).cost

    assert taken < usage_oracle.shard_cost(batch, 32) < 10 * taken


def test_tokens_of_a_prompt_are_those_of_the_answer() -> None:
    answer = reply("/v1/chat/completions", {"model": MODEL, "messages": []}, "Say it")
    usage = answer.usage

    assert usage_oracle.tokens_of("Say it") == (
        usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reserved", "requests", "struck", "faults"),
    [(0, 0, 0, 0), (0, 16, 2, 0), (1, 0, 2, 1), (0, 17, 2, 1), (0, 1, 0, 1)],
)
def test_leftover_reservations_are_blamed(reserved: int, requests: int, struck: int, faults: int) -> None:
    assert len(list(usage_oracle.leftover_reservations(reserved, requests, struck))) == faults


@pytest.mark.parametrize(("answers", "resets", "faults"), [(90, 0, 0), (91, 0, 1), (91, 1, 0), (121, 1, 1)])
def test_answers_above_a_rate_limit_are_blamed(answers: int, resets: int, faults: int) -> None:
    assert len(list(usage_oracle.excess_answers(answers, 120.0, 30, resets))) == faults


@pytest.mark.parametrize(
    ("status", "codes", "faults"),
    [("cancelled", ["key_revoked"], 0), ("cancelled", [], 1), ("cancelled", ["other"], 1), ("completed", [], 0)],
)
def test_cancellation_for_another_reason_than_its_key_is_blamed(status: str, codes: list[str], faults: int) -> None:
    batch = LimitedBatch("b", "/v1/responses", MODEL, {}, cancelled=True, status=status)

    assert len(list(usage_oracle.wrong_cancellation(batch, codes))) == faults


def set_prices(db: Database) -> None:
    with db.write() as session:
        session.add(Model(id=MODEL, queue="gpu.generate", created_at=1.0, seen_at=1.0))
        for kind, price in usage_oracle.PRICES.items():
            session.add(Price(model=MODEL, kind=kind, since=1, usd_per_million=price, created_at=1.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, ""),
        (
            update(UsageMinute).where(UsageMinute.batch).values(output_tokens=UsageMinute.output_tokens + 1),
            "usage: the batches",
        ),
        (delete(UsageMinute).where(UsageMinute.batch), "usage: the batches"),
        (update(UsageMinute).where(~UsageMinute.batch).values(input_tokens=0), "usage: the jobs"),
        (update(UsageMinute).values(cost=1), "costs: UsageRow"),
        (update(Spend).values(amount=Spend.amount + 1), "has spent"),
        (delete(Spend), "has spent 0"),
    ],
)
def test_wrong_row_of_usage_is_blamed(sqlite: Database, change: Any, words: str) -> None:
    set_prices(sqlite)
    for kind in ("generation", "response"):
        job = sample_jobs.finishing(sqlite, model=MODEL, kind=kind)
        sample_jobs.close(sqlite, job.id, **sample_jobs.tally(range(4)).tokens())
    with sqlite.write() as session:
        minutes.fold(session, lambda _: None)
    with sqlite.write() as session:
        if change is not None:
            session.execute(change)
    with sqlite.read() as session:
        faults = list(judging_usage.record_faults(session))

    assert any(words in fault for fault in faults) is bool(words)
    assert bool(faults) is bool(words)


@pytest.mark.parametrize(
    ("struck", "samples", "refusals", "keys", "unmet"),
    [
        (9, [SpendSample(10, 10)], 1, 1, ""),
        (9, [SpendSample(10, 9)], 1, 1, "spend limit"),
        (9, [SpendSample(10, 10)], 0, 1, "rate limit"),
        (9, [SpendSample(10, 10)], 1, 0, "revoked key"),
        (1, [], 0, 0, ""),
    ],
)
def test_limit_that_the_load_never_met_is_blamed(
    struck: int, samples: list[SpendSample], refusals: int, keys: int, unmet: str
) -> None:
    campaign: Any = SimpleNamespace(struck=[None] * struck)
    parts: Any = {
        "admin": None,
        "budgeted": SimpleNamespace(samples=samples),
        "metered": SimpleNamespace(refusals=refusals),
        "revoked": SimpleNamespace(keys=keys),
    }

    faults = list(judging_usage._unmet_limits(campaign, LimitedProjects(**parts)))

    assert faults == ([f"no client met a {unmet}"] if unmet else [])


def test_batches_under_limits_that_do_not_end_are_blamed() -> None:
    batch = LimitedBatch("budgeted-000", "/v1/responses", MODEL, {}, "batch_1", status="in_progress")
    late: Any = SimpleNamespace(await_idle=lambda _: False, open=[batch])
    idle: Any = SimpleNamespace(await_idle=lambda _: True, open=[])
    journal, parts = Journal(1), {"admin": None, "budgeted": late, "metered": None, "revoked": idle}
    campaign: Any = SimpleNamespace(patience=1, journal=journal, load=SimpleNamespace(limited=SimpleNamespace(**parts)))

    judging_usage.await_limited(campaign)

    assert journal.violations == ["I1: not ended in time under a limit: budgeted-000 in_progress"]


def test_requests_without_an_answer_count_an_estimate_at_most() -> None:
    parts: Any = {"client": None, "journal": Journal(1), "rng": None, "project_id": "p"}
    answers = [MeteredAnswer(1.0, TOOK)]

    assert MeteredClient(**parts, answers=answers, requests=3, refusals=2).estimated == Tokens()
    assert MeteredClient(**parts, answers=answers, requests=5, refusals=2).estimated == Tokens(input=2 * 50)
