"""Aliases of a project, as the official SDK uses them: old names of models in unchanged code."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from api import request_recorder
from api.inference import shadows
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.inference import request_counts
from jobs.inference.request_counts import RequestKey
from jobs.inference.tables import ShadowAnswer
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.registry import aliases
from jobs.registry.tables import Alias, AliasMove
from jobs.security import keys
from jobs.security.project_rules import ProjectRules, TierRule
from jobs.usage import budgets, prices
from jobs.usage.minutes import UsageKey
from jobs.usage.rate_limits import set_limits
from jobs.usage.tables import Reservation
from jobs.webhooks.tables import Event
from tests.integration.test_rate_limits import limit, project_id_of
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import chat_line, jsonl, running
from tests.support.interactive_api import HELLO, MODEL, Shop
from tests.support.system import eventually
from tests.support.worker_rows import worker_row
from workers.dispatcher import rollbacks
from workers.engines.port import Answer, EngineFault, Request, refusal

NAME = "ft:gpt-4o-mini:acme::abc"


@pytest.fixture
def client(shop: Shop) -> OpenAI:
    """Return a client of a project that has an alias of the served model."""
    make_alias(shop.client, NAME)
    return shop.client


def make_alias(client: OpenAI, name: str) -> None:
    client.post("/aliases", body={"id": name, "model": MODEL}, cast_to=object)


def test_each_endpoint_answers_an_alias_with_the_model_in_its_place(client: OpenAI) -> None:
    chat: Any = client.chat.completions
    answers = [
        chat.create(model=NAME, messages=HELLO),
        chat.create(model=NAME, messages=HELLO, store=True),
        *chat.create(model=NAME, messages=HELLO, stream=True),
        client.completions.create(model=NAME, prompt="Hello"),
        client.embeddings.create(model=NAME, input="Hello"),
        client.responses.create(model=NAME, input="Hello"),
        client.responses.create(model=NAME, input="Hello", background=True),
    ]

    assert {answer.model for answer in answers} == {MODEL}
    assert [one.id for one in client.chat.completions.list(model=NAME)] == [answers[1].id]


def test_alias_is_found_among_the_models(client: OpenAI) -> None:
    found = client.models.retrieve(NAME)

    assert (found.id, found.to_dict()["alias_of"]) == (NAME, MODEL)
    assert NAME in {model.id for model in client.models.list()}


def test_rate_limits_of_the_model_count_requests_for_its_alias(shop: Shop, client: OpenAI) -> None:
    limit(shop, requests_per_minute=600)

    raw = client.chat.completions.with_raw_response
    left = [raw.create(model=name, messages=HELLO).headers for name in (MODEL, NAME)]

    assert [headers["x-ratelimit-remaining-requests"] for headers in left] == ["599", "598"]


def test_alias_that_is_deleted_names_no_model_within_seconds(client: OpenAI) -> None:
    client.chat.completions.create(model=NAME, messages=HELLO)
    client.delete(f"/aliases/{NAME}", cast_to=object)

    def is_unknown() -> bool:
        try:
            client.chat.completions.create(model=NAME, messages=HELLO)
        except openai.NotFoundError as error:
            return error.code == "model_not_found"
        return False

    eventually(is_unknown, 30, "the alias is gone")


# ── several targets ──

RIVAL = "fake-model-2"


@pytest.fixture
def rivals(shop: Shop) -> Iterator[Shop]:
    """Yield the shop with a second model, which a second worker announces."""
    served = shop.engine.models
    shop.engine.models = (*served, RIVAL)
    with shop.app.state.services.db.write() as session:
        workers.store_models(session, {RIVAL: False}, Queue.GENERATE)
        workers.register(session, worker_row("gpu-2", Queue.GENERATE, RIVAL, created_at=now(), seen_at=now()))
    shop.announce("gpu-1")
    yield shop
    shop.leave("gpu-2")
    shop.engine.models = served


def split(client: OpenAI, name: str = NAME, **fields: Any) -> Any:
    """Make an alias that draws either model for half of the requests."""
    targets = [{"model": MODEL, "weight": 50}, {"model": RIVAL, "weight": 50}]
    return client.post("/aliases", body={"id": name, "targets": targets, **fields}, cast_to=object)


def move(client: OpenAI, **fields: Any) -> Any:
    return client.post(f"/aliases/{NAME}", body=fields, cast_to=object)


def test_each_request_is_answered_by_the_model_that_it_names(rivals: Shop) -> None:
    split(rivals.client)

    raw = [rivals.client.chat.completions.with_raw_response.create(model=NAME, messages=HELLO) for _ in range(40)]

    named = [answer.headers["x-nightmill-model"] for answer in raw]
    assert set(named) == {MODEL, RIVAL}
    assert [answer.parse().model for answer in raw] == named
    plain = rivals.client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert "x-nightmill-model" not in plain.headers


@pytest.mark.parametrize("field", ["safety_identifier", "user"])
def test_sticky_alias_gives_a_user_the_same_model_each_time(rivals: Shop, field: str) -> None:
    split(rivals.client, sticky=True)
    ask = rivals.client.chat.completions.create
    users = {f"user-{n}": ask(model=NAME, messages=HELLO, extra_body={field: f"user-{n}"}).model for n in range(30)}

    assert set(users.values()) == {MODEL, RIVAL}
    for user, model in users.items():
        response = rivals.client.responses.create(model=NAME, input="Hello", extra_body={field: user})
        assert response.model == model
    assert len({ask(model=NAME, messages=HELLO).model for _ in range(10)}) == 1  # by the key
    move(rivals.client, sticky=False)
    eventually(lambda: len({ask(model=NAME, messages=HELLO).model for _ in range(10)}) == 2, 30, "requests draw again")


def test_stream_keeps_its_model_while_the_alias_moves(rivals: Shop) -> None:
    make_alias(rivals.client, NAME)
    create = rivals.client.chat.completions.create
    streams = [create(model=NAME, messages=HELLO, stream=True) for _ in range(4)]
    first = [next(stream).model for stream in streams]

    move(rivals.client, model=RIVAL)

    eventually(lambda: create(model=NAME, messages=HELLO).model == RIVAL, 30, "requests follow the move")
    for stream, model in zip(streams, first, strict=True):
        assert {chunk.model for chunk in stream} <= {model}
    assert first == [MODEL] * 4


def test_fallback_answers_where_no_worker_serves_the_target(rivals: Shop) -> None:
    rivals.client.post("/aliases", body={"id": NAME, "model": RIVAL, "fallbacks": [MODEL]}, cast_to=object)
    rivals.client.post("/aliases", body={"id": "plain", "model": RIVAL}, cast_to=object)
    create = rivals.client.chat.completions.create
    assert create(model=NAME, messages=HELLO).model == RIVAL

    rivals.leave("gpu-2")

    eventually(lambda: create(model=NAME, messages=HELLO).model == MODEL, 30, "the fallback answers")
    with pytest.raises(openai.InternalServerError) as refused:
        create(model="plain", messages=HELLO)
    assert refused.value.status_code == 503


# ── fallbacks after a failure ──


@pytest.fixture
def faults(rivals: Shop, monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException | Answer]:
    """Return the failures of the engine by model: none yet."""
    faults: dict[str, BaseException | Answer] = {}
    monkeypatch.setattr(rivals.engine, "_fault", lambda request: faults.get(str(request.body["model"])))
    return faults


@pytest.fixture
def asked(rivals: Shop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the models that the engine is asked for, in order."""
    asked: list[str] = []
    begin = rivals.engine._answer

    async def note(request: Request) -> Answer:
        asked.append(str(request.body["model"]))
        return await begin(request)

    monkeypatch.setattr(rivals.engine, "_answer", note)
    return asked


def make_rival(client: OpenAI, **fields: Any) -> None:
    """Make an alias of the second model, whose fallback is the first one."""
    client.post("/aliases", body={"id": NAME, "model": RIVAL, "fallbacks": [MODEL], **fields}, cast_to=object)


def test_fallback_answers_at_each_endpoint_where_the_target_fails(rivals: Shop, faults: dict[str, Any]) -> None:
    make_rival(rivals.client)
    faults[RIVAL] = EngineFault("no answer")
    chat: Any = rivals.client.chat.completions
    raw = chat.with_raw_response.create(model=NAME, messages=HELLO)

    answers = [
        raw.parse(),
        *chat.create(model=NAME, messages=HELLO, stream=True),
        rivals.client.completions.create(model=NAME, prompt="Hello"),
        rivals.client.embeddings.create(model=NAME, input="Hello"),
        rivals.client.responses.create(model=NAME, input="Hello"),
    ]

    assert {answer.model for answer in answers} == {MODEL}
    assert raw.headers["x-nightmill-model"] == MODEL


def test_failure_of_the_last_fallback_is_that_of_the_request(
    rivals: Shop, faults: dict[str, Any], asked: list[str]
) -> None:
    make_rival(rivals.client)
    faults |= {RIVAL: EngineFault("no answer"), MODEL: refusal(503, "Ask again.", code="overloaded")}

    with pytest.raises(openai.InternalServerError) as failed:
        rivals.client.chat.completions.create(model=NAME, messages=HELLO)

    assert failed.value.code == "overloaded"
    assert list(dict.fromkeys(asked)) == [RIVAL, MODEL]


@pytest.mark.parametrize("status", [400, 404, 429])
def test_refusal_of_the_target_is_final(rivals: Shop, faults: dict[str, Any], asked: list[str], status: int) -> None:
    make_rival(rivals.client)
    faults[RIVAL] = refusal(status, "No.", code="refused")

    with pytest.raises(openai.APIStatusError) as refused:
        rivals.client.chat.completions.create(model=NAME, messages=HELLO)

    assert (refused.value.status_code, refused.value.code, asked) == (status, "refused", [RIVAL])


def test_stream_that_has_begun_is_given_to_no_other_model(rivals: Shop, asked: list[str]) -> None:
    make_rival(rivals.client)
    messages: Any = [{"role": "user", "content": "Hello !cut"}]

    with suppress(openai.APIError):
        models = [chunk.model for chunk in rivals.client.chat.completions.create(
            model=NAME, messages=messages, stream=True
        )]  # fmt: skip
        assert set(models) == {RIVAL}

    assert asked == [RIVAL]


def test_fallback_answers_where_the_target_is_silent(rivals: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    make_rival(rivals.client, fallback_after=1)
    given_up, begin = threading.Event(), rivals.engine._answer

    async def be_silent(request: Request) -> Answer:
        if request.body["model"] == RIVAL:
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()
        return await begin(request)

    monkeypatch.setattr(rivals.engine, "_answer", be_silent)
    create = rivals.client.chat.completions.create

    assert create(model=NAME, messages=HELLO).model == MODEL
    assert given_up.wait(30)  # the engine of the target was told
    assert {chunk.model for chunk in create(model=NAME, messages=HELLO, stream=True)} == {MODEL}


def test_failed_target_leaves_nothing_reserved(rivals: Shop, faults: dict[str, Any]) -> None:
    make_rival(rivals.client)
    faults[RIVAL] = EngineFault("no answer")
    with rivals.app.state.services.db.write() as session:
        project = project_id_of(rivals, session)
        prices.set_prices(session, RIVAL, {"input": 1.0, "output": 1.0}, 1, actor="test")
        budgets.change_limit(session, project, 1_000_000, actor="test")

    def is_answered() -> bool:
        assert rivals.client.chat.completions.create(model=NAME, messages=HELLO).model == MODEL
        with rivals.app.state.services.db.read() as session:
            return session.scalar(select(Reservation.id).where(Reservation.project_id == project)) is not None

    eventually(is_answered, 30, "the limit is known, and money was reserved")
    with rivals.app.state.services.db.read() as session:
        ends = session.scalars(select(Reservation.expires_at).where(Reservation.project_id == project)).all()
    assert max(ends) <= now() + budgets.RECORDED_SECONDS


def test_background_response_is_made_by_the_model_that_it_named_at_first(rivals: Shop) -> None:
    split(rivals.client)

    made = [rivals.client.responses.create(model=NAME, input="Hello", background=True) for _ in range(16)]

    assert {response.model for response in made} == {MODEL, RIVAL}
    with rivals.app.state.services.db.read() as session:
        jobs = {response.id: session.get_one(Job, response.id).model for response in made}
    assert jobs == {response.id: response.model for response in made}


def test_batch_keeps_its_model_while_the_alias_moves(db: Database, tmp_path: Path) -> None:
    engine = FakeEngine(models=(MODEL, RIVAL))
    with running(db, tmp_path, engine, shard_lines=2) as deployment:
        with db.write() as session:
            workers.store_models(session, {MODEL: False, RIVAL: False}, Queue.GENERATE)
            project = keys.ensure_project(session, "default").id
            alias = Alias(project_id=project, name=NAME, created_at=now(), created_by="test")
            aliases.move(session, alias, aliases.single(MODEL), "create", actor="test")
        job_id = deployment.submit(jsonl([chat_line(f"r{n}", f"Hello {n}", model=NAME) for n in range(40)]))
        deployment.until(lambda: deployment.job(job_id).model is not None)
        with db.write() as session:
            found = aliases.find(session, NAME, project, lock=True)
            assert found is not None
            aliases.move(session, found, aliases.single(RIVAL), "update", actor="test")

        (job,) = deployment.drain(job_id)

        good, bad = deployment.results(job)
        assert (job.model, len(good), bad) == (MODEL, 40, [])
        assert {(line["resolved_model"], line["response"]["body"]["model"]) for line in good} == {(MODEL, MODEL)}


# ── roll-back by itself ──


def test_rollback_is_complete_after_an_answer(rivals: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollbacks, "_SETTLED", 0.0)
    split(rivals.client)
    services = rivals.app.state.services
    minute = int(now()) // 60 * 60 - 60
    with services.db.write() as session:
        watched = select(Alias).where(Alias.name == NAME, Alias.watched_since.is_not(None))
        alias = session.scalars(watched.order_by(Alias.created_at.desc()).limit(1)).one()
        alias.watched_since = now() - 3600
        key = RequestKey(alias.project_id, minute, MODEL, "duration", "3")
        failed = key._replace(model=RIVAL, measure="errors", bucket="engine_error")
        request_counts.write(session, {key: (60, 20.0), failed: (60, 60)})
    leader = rollbacks.Rollbacks(services.config, services.db, services.registry)
    rivals.leave("gpu-1")

    def types() -> list[str]:
        leader.run()
        with services.db.read() as session:
            moves = select(AliasMove.id).where(AliasMove.action == "rollback", AliasMove.name == NAME)
            told = select(Event.type).where(Event.subject_id.in_(moves), Event.project_id == alias.project_id)
            return list(session.scalars(told.order_by(Event.seq)))

    assert [types() for _ in range(3)][-1] == [aliases.MOVED]  # rolled back, but nobody has answered
    rivals.asked.clear()
    rivals.announce("gpu-1")
    eventually(lambda: len(types()) == 2, 30, "the probe is answered")
    assert types() == [aliases.MOVED, aliases.ROLLED_BACK]
    assert rivals.asked == ["Hello"]


# ── shadow ──


@dataclass
class ShadowedShop:
    """The shop with an alias of one model, whose shadow is the other one. `held` lets the shadow wait."""

    shop: Shop
    asked: list[tuple[str, str]]
    held: threading.Event

    @property
    def client(self) -> OpenAI:
        return self.shop.client

    def set_up(self, **shadow: Any) -> None:
        body = {"id": NAME, "model": MODEL, "shadow": {"model": RIVAL, **shadow}}
        self.client.post("/aliases", body=body, cast_to=object)

    def ask(self, **fields: Any) -> Any:
        return self.client.chat.completions.create(**{"model": NAME, "messages": HELLO, **fields})

    def counts(self) -> dict[str, Any]:
        alias: Any = self.client.get(f"/aliases/{NAME}", cast_to=object)
        return dict(alias["shadow_counts"])

    def wait_for(self, **counts: Any) -> None:
        eventually(lambda: counts.items() <= self.counts().items(), 30, f"the shadow has {counts}")

    @property
    def models(self) -> list[str]:
        return [model for model, _ in self.asked]


@pytest.fixture
def shadowed(rivals: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShadowedShop]:
    monkeypatch.setattr(request_recorder, "_EVERY", 0.05)
    made = ShadowedShop(rivals, [], threading.Event())
    made.held.set()
    answer = rivals.engine._answer

    async def note(request: Request) -> Answer:
        made.asked.append((str(request.body["model"]), request.url))
        if request.body["model"] == RIVAL:
            await asyncio.to_thread(made.held.wait, 30)
        return await answer(request)

    monkeypatch.setattr(rivals.engine, "_answer", note)
    yield made
    made.held.set()


def test_shadow_answers_the_requests_of_its_target(shadowed: ShadowedShop) -> None:
    shadowed.set_up(compare="exact_match")
    client, chat = shadowed.client, shadowed.client.chat.completions
    answers = [
        shadowed.ask(),
        shadowed.ask(store=True),
        *chat.create(model=NAME, messages=HELLO, stream=True),
        client.completions.create(model=NAME, prompt="Hello"),
        *client.completions.create(model=NAME, prompt="Hello", stream=True),
        client.responses.create(model=NAME, input="Hello"),
    ]
    with client.responses.stream(model=NAME, input="Hello") as stream:
        answers.append(stream.get_final_response())

    assert {answer.model for answer in answers} == {MODEL}
    shadowed.wait_for(requests=7, sent=7, compared=7, equal=7, dropped=0, failed=0)
    by_model = [sorted(url for model, url in shadowed.asked if model == each) for each in (MODEL, RIVAL)]
    assert by_model[0] == by_model[1]
    assert len(list(chat.list())) == 1  # what the shadow answers is not stored


def pairs_of(shadowed: ShadowedShop) -> list[dict[str, Any]]:
    with shadowed.shop.app.state.services.db.read() as session:
        return [json.loads(line) for line in session.scalars(select(ShadowAnswer.line).order_by(ShadowAnswer.id))]


def test_shadow_that_graders_compare_keeps_both_answers(shadowed: ShadowedShop) -> None:
    shadowed.set_up(compare="grader")
    answer = shadowed.ask()
    shadowed.client.completions.create(model=NAME, prompt="Hello")
    shadowed.client.responses.create(model=NAME, input="Hello")

    eventually(lambda: len(pairs_of(shadowed)) == 3, 30, "all pairs are there")
    pairs = {json.dumps(pair["item"]["input"]): pair for pair in pairs_of(shadowed)}
    assert pairs.keys() == {json.dumps(HELLO), '"Hello"'}
    chat = pairs[json.dumps(HELLO)]
    assert chat["item"]["answer"] == chat["sample"]["output_text"] == answer.choices[0].message.content
    assert chat["item"]["model"] == RIVAL
    assert len(list(shadowed.client.chat.completions.list())) == 0


def test_shadow_of_project_with_zero_retention_keeps_no_answers(
    shadowed: ShadowedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keep_nothing(_call: object) -> ProjectRules:
        return ProjectRules(TierRule(), keeps_nothing=True)

    monkeypatch.setattr(shadows, "rules_of_project", keep_nothing)
    before = len(pairs_of(shadowed))
    shadowed.set_up(compare="grader")
    shadowed.ask()

    shadowed.wait_for(compared=1)
    assert len(pairs_of(shadowed)) == before


def test_shadow_is_asked_its_share_and_compared_by_length(shadowed: ShadowedShop) -> None:
    shadowed.set_up(share=50, compare="length", max_in_flight=64)

    for n in range(40):
        shadowed.ask(messages=[{"role": "user", "content": f"Hello {n}"}])

    shadowed.shop.wait_until_free()
    eventually(lambda: shadowed.models.count(RIVAL) == shadowed.counts()["compared"] > 0, 30, "all are compared")
    counts = shadowed.counts()
    assert 4 < counts["requests"] == counts["sent"] == counts["compared"] < 36
    assert (counts["equal"], counts["length_ratio"]) == (None, 1.0)


def test_shadow_that_is_busy_delays_no_client_and_drops_requests(shadowed: ShadowedShop) -> None:
    shadowed.set_up(max_in_flight=1)
    shadowed.held.clear()

    assert {shadowed.ask().model for _ in range(4)} == {MODEL}

    shadowed.wait_for(requests=4, sent=1, dropped=3)
    shadowed.held.set()
    shadowed.shop.wait_until_free()
    eventually(lambda: shadowed.ask().model == MODEL and shadowed.counts()["sent"] > 1, 30, "the shadow is free")


def test_failure_of_the_shadow_reaches_no_client(shadowed: ShadowedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    shadowed.set_up(compare="exact_match")
    faults = {RIVAL: EngineFault("no answer")}
    monkeypatch.setattr(shadowed.shop.engine, "_fault", lambda request: faults.get(str(request.body["model"])))

    assert shadowed.ask().model == MODEL
    shadowed.wait_for(sent=1, failed=1, compared=0)
    shadowed.shop.leave("gpu-2")

    def has_unsent() -> bool:
        counts = shadowed.counts()
        return shadowed.ask().model == MODEL and counts["failed"] > counts["sent"]

    eventually(has_unsent, 30, "requests have failed that no worker took")


def test_failed_request_is_not_sent_to_the_shadow(shadowed: ShadowedShop) -> None:
    shadowed.set_up()

    with pytest.raises(openai.InternalServerError):
        shadowed.ask(messages=[{"role": "user", "content": "!500"}])
    shadowed.ask()

    shadowed.wait_for(requests=1, sent=1)
    assert shadowed.models.count(RIVAL) == 1


def test_shadow_takes_nothing_of_the_rate_limits(shadowed: ShadowedShop) -> None:
    shadowed.set_up()
    with shadowed.shop.app.state.services.db.write() as session:
        for model in (MODEL, RIVAL):
            set_limits(session, project_id_of(shadowed.shop, session), model, {"requests_per_day": 100})

    raw = shadowed.client.chat.completions.with_raw_response
    shadowed.ask()
    shadowed.wait_for(sent=1)
    left = [raw.create(model=model, messages=HELLO).headers for model in (MODEL, RIVAL)]

    assert [headers["x-ratelimit-remaining-requests"] for headers in left] == ["98", "99"]


def test_alias_without_a_shadow_asks_its_target_alone(shadowed: ShadowedShop) -> None:
    shadowed.set_up()
    move(shadowed.client, shadow=None)

    shadowed.ask()

    shadowed.shop.wait_until_free()
    alias: Any = shadowed.client.get(f"/aliases/{NAME}", cast_to=object)
    assert (alias["shadow"], alias["shadow_counts"], shadowed.models) == (None, None, [MODEL])


class Usages:
    """Note the key of each usage that a worker counts."""

    def __init__(self) -> None:
        self.keys: list[UsageKey] = []

    def add_answer(self, key: UsageKey, _answer: Answer) -> None:
        self.keys.append(key)


def test_tokens_of_the_shadow_are_usage_of_the_key(make_shop: Callable[..., Shop]) -> None:
    usages, shop = Usages(), make_shop()
    shop.engine.models = (MODEL, RIVAL)
    with shop.app.state.services.db.write() as session:
        workers.store_models(session, {RIVAL: False}, Queue.GENERATE)
        workers.register(session, worker_row("gpu-2", Queue.GENERATE, RIVAL, created_at=now(), seen_at=now()))
    shop.client.post("/aliases", body={"id": NAME, "model": MODEL, "shadow": {"model": RIVAL}}, cast_to=object)

    with shop.open(usage=usages):
        shop.client.chat.completions.create(model=NAME, messages=HELLO)
        eventually(lambda: len(usages.keys) == 2, 30, "both are counted")

    client, shadow = usages.keys
    assert [(key.model, key.tier) for key in (client, shadow)] == [(MODEL, "default"), (RIVAL, "flex")]
    assert (client.project_id, client.key_id) == (shadow.project_id, shadow.key_id)
