"""Spend limits on the whole way: interactive clients over two web processes, and batches that wait and go on."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI, RateLimitError
from sqlalchemy import func, select

from api.jobs import explain
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Shard
from jobs.usage import budgets
from jobs.usage.budgets import MICROS_PER_CENT
from jobs.usage.minutes import month_of
from jobs.usage.tables import Price, Reservation, Spend
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from tests.support.interactive_api import CHAT, Shop, running_broker, shops
from tests.support.system import eventually
from tests.support.web import make_key, running_app, serve

CENT = MICROS_PER_CENT


def set_prices(db: Database, dollars: float) -> None:
    with db.write() as session:
        for kind in ("input", "output"):
            session.add(Price(model=MODEL, kind=kind, since=1, usd_per_million=dollars, created_at=1.0))


def set_limit(db: Database, owner: str, cents: int | None) -> None:
    with db.write() as session:
        budgets.change_limit(session, owner, cents, actor="operator")


# -- interactive clients


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker(tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.mark.dialects
def test_requests_of_two_processes_at_once_exceed_the_limit_by_a_single_admission(
    tmp_path: Path, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "RECORDED_SECONDS", 600.0)  # no worker records usage here
    with ExitStack() as stack:
        shop: Shop = stack.enter_context(shops(tmp_path, database_url, redis_url))()
        stack.enter_context(shop.open())
        files = {"models_file": str(tmp_path / "models.yaml"), "streams_url": redis_url}
        other = stack.enter_context(running_app(tmp_path, database_url, **files))
        db = shop.app.state.services.db
        with db.write() as session:  # a token of an answer costs a tenth of a cent, and a prompt nothing
            for kind, price in (("input", 0.0), ("output", 1000.0)):
                session.add(Price(model=MODEL, kind=kind, since=1, usd_per_million=price, created_at=1.0))
        set_limit(db, budgets.ORGANIZATION, 20)
        urls = shop.url, f"{stack.enter_context(serve(other))}/v1"
        options: Any = {"api_key": make_key(shop.app), "max_retries": 20, "timeout": 60}  # of a 503, where it is busy
        clients = [stack.enter_context(OpenAI(base_url=url, **options)) for url in urls]

        def ask(n: int) -> int | RateLimitError:
            """Return the tokens of the answer, or the refusal."""
            try:
                answer = clients[n % 2].chat.completions.create(**CHAT.body, max_tokens=10)
            except RateLimitError as error:
                return error
            return answer.usage.completion_tokens if answer.usage else 0

        with ThreadPoolExecutor(20) as threads:
            ends = list(threads.map(ask, range(200)))
        for n in range(50):  # what was reserved for others was not all spent
            ends.append(ask(n))
            if isinstance(ends[-1], RateLimitError):
                break

        def reserved() -> int:
            with db.read() as session:
                return int(session.scalar(select(func.sum(Reservation.amount))) or 0)

        spent = sum(tokens for tokens in ends if isinstance(tokens, int)) * 1000
        eventually(lambda: reserved() == spent, 10, "each request is settled")
    refusals = [refusal for refusal in ends if not isinstance(refusal, int)]

    assert 19 * CENT < spent < 20 * CENT + CENT
    assert isinstance(ends[-1], RateLimitError)
    assert {(error.code, error.type) for error in refusals} == {
        ("organization_spend_limit_exceeded", "insufficient_quota")
    }
    assert {error.response.headers.get("x-should-retry") for error in refusals} == {"false"}
    assert not any("retry-after" in error.response.headers for error in refusals)


def test_reservations_of_ended_requests_expire_within_seconds(tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    with ExitStack() as stack:
        shop: Shop = stack.enter_context(shops(tmp_path, sqlite_url, redis_url))()
        stack.enter_context(shop.open())
        set_limit(shop.app.state.services.db, budgets.ORGANIZATION, 1)
        answers = [
            shop.post("chat/completions", {**CHAT.body, "max_tokens": 5}),
            shop.post("chat/completions", {**CHAT.body, "max_tokens": -1}),
            shop.post("chat/completions", {**CHAT.body, "stream": True}),
        ]
        with shop.app.state.services.db.read() as session:
            ends = session.scalars(select(Reservation.expires_at)).all()

    assert [answer.status_code for answer in answers[::2]] == [200, 200]
    assert all(at < now() + budgets.RECORDED_SECONDS for at in ends)
    assert len(ends) == 3


def test_sdk_asks_once_at_the_spend_limit(tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    answers: list[httpx2.Response] = []
    with ExitStack() as stack:
        shop: Shop = stack.enter_context(shops(tmp_path, sqlite_url, redis_url))()
        stack.enter_context(shop.open())
        db = shop.app.state.services.db
        set_limit(db, budgets.ORGANIZATION, 1)
        with db.write() as session:
            session.add(Spend(project_id="another", month=month_of(now()), amount=CENT))
        http = stack.enter_context(httpx2.Client(event_hooks={"response": [answers.append]}))
        client = OpenAI(api_key=shop.client.api_key, base_url=shop.url, http_client=http, max_retries=2)
        with pytest.raises(RateLimitError) as refused:
            client.chat.completions.create(**CHAT.body)

    assert refused.value.code == "organization_spend_limit_exceeded"
    assert len(answers) == 1


def test_unreadable_limits_refuse_the_request(
    tmp_path: Path, sqlite_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        shop: Shop = stack.enter_context(shops(tmp_path, sqlite_url, redis_url))()
        stack.enter_context(shop.open())

        def fail(_limited: object, _session: object) -> None:
            raise DatabaseBusy

        monkeypatch.setattr(budgets.LimitedProjects, "refresh", fail)
        refused = shop.post("chat/completions", CHAT.body)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")


# -- batches


@pytest.fixture
def inline(db: Database, tmp_path: Path) -> Iterator[InlineDeployment]:
    with running(db, tmp_path, FakeEngine((MODEL,))) as made:
        yield made


def spend(inline: InlineDeployment, project: str, cents: int) -> None:
    with inline.db.write() as session:
        session.merge(Spend(project_id=project, month=month_of(now()), amount=cents * CENT))


@pytest.mark.dialects
@pytest.mark.parametrize("change", ["raised", "removed"])
def test_batch_waits_at_the_limit_and_continues(inline: InlineDeployment, change: str) -> None:
    set_prices(inline.db, 100.0)
    set_limit(inline.db, budgets.ORGANIZATION, 5)
    job_id = inline.submit(jsonl([chat_line(f"r{n}", "hello", max_tokens=5) for n in range(40)]))
    spend(inline, inline.job(job_id).project_id, 5)

    inline.until(lambda: inline.job(job_id).waiting_for == "spend_limit")
    job = inline.job(job_id)
    with inline.db.read() as session:
        reason: Any = explain._wait_reason(session, job)
        planned = session.scalars(select(Shard.max_output_tokens).where(Shard.job_id == job_id)).all()
    assert (job.state, job.completed, sum(map(int, planned))) == (JobState.RUNNING, 0, 40 * 5)
    assert reason.code == "waiting_for_spend_limit"
    assert "spend limit" in reason.message

    set_limit(inline.db, budgets.ORGANIZATION, 500 if change == "raised" else None)
    [job] = inline.drain(job_id)

    assert (job.state, job.completed, job.waiting_for) == (JobState.SUCCEEDED, 40, None)
    with inline.db.read() as session:
        assert budgets.budget_of(session, budgets.ORGANIZATION, inline.cpu.price_source).reserved == 0


def test_batch_of_another_project_completes(inline: InlineDeployment) -> None:
    lines = jsonl([chat_line("r", "hello", max_tokens=5)])
    poor, rich = (inline.submit(lines, project=name) for name in ("poor", "rich"))
    set_limit(inline.db, inline.job(poor).project_id, 1)
    spend(inline, inline.job(poor).project_id, 1)

    inline.drain(rich)
    inline.until(lambda: inline.job(poor).waiting_for == "spend_limit")

    assert (inline.job(poor).state, inline.job(rich).state) == (JobState.RUNNING, JobState.SUCCEEDED)


def test_waiting_batch_is_cancelled(inline: InlineDeployment) -> None:
    job_id = inline.submit(jsonl([chat_line("r", "hello")]))
    set_limit(inline.db, budgets.ORGANIZATION, 1)
    spend(inline, inline.job(job_id).project_id, 1)
    inline.until(lambda: inline.job(job_id).waiting_for == "spend_limit")
    with inline.db.write() as session:
        ledger.cancel(session, job_id, actor="test")

    assert inline.drain(job_id)[0].state == JobState.CANCELLED


def test_waiting_shards_are_not_published(inline: InlineDeployment) -> None:
    job_id = inline.submit(jsonl([chat_line(f"r{n}", "hello") for n in range(80)]))
    set_limit(inline.db, budgets.ORGANIZATION, 1)
    spend(inline, inline.job(job_id).project_id, 1)
    inline.until(lambda: inline.job(job_id).waiting_for == "spend_limit")
    inline.wait_until_idle()
    published = list[str]()
    inline.elsewhere = lambda task, _queue, _arguments: bool(published.append(task)) or True
    pause = threading.Event()
    for _ in range(20):
        inline.dispatcher.tick()
        pause.wait(0.02)

    assert published == []
