"""How long the input of a response is: the official SDK, the real API and its Redis, a consumer that counts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import select

from jobs.inference import responses
from jobs.retrieval.searches import FoundChunk, Search
from jobs.usage import budgets
from jobs.usage.tables import Reservation
from tests.support.fake_engine import prompt_of
from tests.support.interactive_api import MODEL, Shop
from workers.engines.port import Answer, Length, Request
from workers.engines.router import Router
from workers.inference.token_counting import TokenCounter
from workers.middleware.file_search.excerpts import ContextBudget

pytestmark = pytest.mark.verify


async def _words(request: Request) -> Length:
    return Length(len(prompt_of(request.url, request.body).split()), 100)


async def _guess(request: Request) -> Length:
    return Length(1, None, exact=False)


async def _search(request: Request, search: Search) -> Sequence[FoundChunk] | Answer:
    return []


def _own(shop: Shop, measure: Any = _words) -> dict[str, Any]:
    counting = TokenCounter(shop.host, measure, _search, lambda _: ContextBudget(1000))
    return {responses.COUNT_URL: counting.answer}


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop()
    with made.open(handlers=_own(made)):
        yield made


def _count(shop: Shop, **fields: Any) -> int:
    counted = shop.client.responses.input_tokens.count(model=MODEL, **fields)
    assert counted.object == "response.input_tokens"
    return counted.input_tokens


def test_input_is_counted_without_model_request(shop: Shop) -> None:
    items: Any = [{"role": "user", "content": "one two"}, {"role": "user", "content": "three"}]

    assert (_count(shop, input="one two three"), _count(shop, input=items)) == (3, 3)
    assert _count(shop, input="word " * 500) == 500
    assert shop.asked == []


def test_counting_costs_nothing_where_a_spend_limit_is_reached(shop: Shop) -> None:
    with shop.app.state.services.db.write() as session:
        budgets.change_limit(session, budgets.ORGANIZATION, 0, actor="operator")
    with pytest.raises(openai.RateLimitError):
        shop.client.responses.create(model=MODEL, input="one two")

    assert _count(shop, input="one two") == 2
    with shop.app.state.services.db.read() as session:
        assert session.scalars(select(Reservation)).all() == []


def test_an_item_that_is_referred_to_counts(shop: Shop) -> None:
    first = shop.client.responses.create(model=MODEL, input="one")
    reference: Any = {"type": "item_reference", "id": first.output[0].id}

    assert _count(shop, input=[reference, {"role": "user", "content": "two"}]) == 1 + len(first.output_text.split())


def test_previous_response_and_conversation_are_counted(shop: Shop) -> None:
    first = shop.client.responses.create(model=MODEL, input="one two")
    talk = shop.client.conversations.create(items=[{"type": "message", "role": "user", "content": "four five six"}])
    before = 2 + len(first.output_text.split())

    assert _count(shop, input="three", previous_response_id=first.id) == before + 1
    assert _count(shop, previous_response_id=first.id) == before
    assert _count(shop, input="seven", conversation=talk.id) == 4
    assert len(list(shop.client.conversations.items.list(talk.id))) == 1, "nothing is added"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        (
            {"input": "x", "previous_response_id": "resp_1", "conversation": "conv_1"},
            "previous_response_id",
            "mutually_exclusive_parameters",
        ),
    ],
)
def test_invalid_input_is_refused_with_its_parameter(shop: Shop, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        _count(shop, **fields)

    assert (refused.value.param, refused.value.code) == (param, code)


def test_another_project_s_history_is_not_counted(shop: Shop) -> None:
    first = shop.client.responses.create(model=MODEL, input="one two")
    talk = shop.client.conversations.create()
    theirs = shop.stranger().responses.input_tokens

    with pytest.raises(openai.BadRequestError, match="not found"):
        theirs.count(model=MODEL, input="x", previous_response_id=first.id)
    with pytest.raises(openai.NotFoundError):
        theirs.count(model=MODEL, input="x", conversation=talk.id)


def test_missing_or_unknown_model_is_refused(shop: Shop) -> None:
    key = {"Authorization": f"Bearer {shop.client.api_key}"}
    without = httpx2.post(f"{shop.url}/responses/input_tokens", json={"input": "x"}, headers=key)

    assert (without.status_code, without.json()["error"]["param"]) == (400, "model")
    with pytest.raises(openai.NotFoundError):
        shop.client.responses.input_tokens.count(model="acme/none", input="x")


def test_an_engine_that_cannot_count_says_so(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop()
    with shop.open(handlers=_own(shop, _guess)), pytest.raises(openai.BadRequestError) as refused:
        _count(shop, input="x")

    assert (refused.value.param, refused.value.code) == ("model", "unsupported_value")


def test_without_a_worker_it_is_503(make_shop: Callable[..., Shop]) -> None:
    with pytest.raises(openai.InternalServerError) as nobody:
        _count(make_shop(), input="x")

    assert (nobody.value.status_code, nobody.value.code) == (503, "no_worker")


def test_with_a_worker_that_has_lost_its_model_it_is_503_as_for_a_chat(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop()
    away = Router([], shop.app.state.services.registry())
    with shop.open(handlers=_own(shop, away.length)), pytest.raises(openai.InternalServerError) as busy:
        _count(shop, input="x")

    assert (busy.value.status_code, busy.value.code) == (503, "engine_busy")
    assert busy.value.type == "server_error"
    assert busy.value.response.headers["Retry-After"] == "1"
