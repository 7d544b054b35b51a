"""Aliases of a project, as the official SDK uses them: old names of models in unchanged code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.inference import request_counts
from jobs.inference.request_counts import RequestKey
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.registry import aliases
from jobs.registry.tables import Alias, AliasMove
from jobs.security import keys
from jobs.webhooks.tables import Event
from tests.integration.test_rate_limits import limit
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import chat_line, jsonl, running
from tests.support.interactive_api import HELLO, MODEL, Shop
from tests.support.system import eventually
from tests.support.worker_rows import worker_row
from workers.dispatcher import rollbacks

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
