"""Rate limits of interactive clients, as the official SDK meets them."""

from typing import Any

import openai
import pytest
from sqlalchemy.orm import Session

from jobs.security import keys
from jobs.security.tables import ApiKey
from jobs.usage import budgets
from jobs.usage.budgets import LimitedProjects
from jobs.usage.rate_limits import set_limits
from tests.support.interactive_api import HELLO, MODEL, Shop
from tests.support.system import eventually


def project_id_of(shop: Shop, session: Session) -> str:
    return session.get_one(ApiKey, keys.id_of(str(shop.client.api_key))).project_id


def limit(shop: Shop, **limits: int) -> None:
    with shop.app.state.services.db.write() as session:
        set_limits(session, project_id_of(shop, session), MODEL, limits)


def ask(shop: Shop, **fields: Any) -> Any:
    return shop.client.chat.completions.with_raw_response.create(
        **{"model": MODEL, "messages": HELLO, "max_tokens": 20, **fields}
    )


def remaining(shop: Shop) -> int:
    """Return the tokens that are left before a request that reserves none to speak of."""
    return int(ask(shop, max_tokens=1).headers["x-ratelimit-remaining-tokens"])


def test_answer_without_limits_has_no_rate_headers(shop: Shop) -> None:
    assert not [name for name in ask(shop).headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("stream", [False, True])
def test_answer_names_the_remaining_requests_and_the_alias_counts_too(shop: Shop, stream: bool) -> None:
    limit(shop, requests_per_minute=600, tokens_per_minute=60_000)

    first = ask(shop, stream=stream).headers
    second = ask(shop, model="gpt-4o-mini").headers

    assert first["x-ratelimit-limit-requests"] == "600"
    assert first["x-ratelimit-remaining-requests"] == "599"
    assert second["x-ratelimit-remaining-requests"] == "598"
    assert int(first["x-ratelimit-remaining-tokens"]) < 60_000 - 20
    assert first["x-ratelimit-reset-requests"].endswith("ms")


def test_sdk_gets_its_error_with_the_time_to_wait(shop: Shop) -> None:
    limit(shop, requests_per_minute=1)
    ask(shop)

    with pytest.raises(openai.RateLimitError) as refused:
        ask(shop)

    error, headers = refused.value, refused.value.response.headers
    assert (error.code, error.type, error.param) == ("rate_limit_exceeded", "requests", None)
    assert 50 <= int(headers["retry-after"]) <= 60
    assert 50_000 <= int(headers["retry-after-ms"]) <= 60_000
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers


@pytest.mark.parametrize("value", [10**9, 1e308])
def test_request_that_never_fits_is_not_worth_a_retry(shop: Shop, value: float) -> None:
    limit(shop, tokens_per_minute=1000)

    with pytest.raises(openai.RateLimitError) as refused:
        ask(shop, max_tokens=value)

    assert refused.value.type == "tokens"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.value.response.headers


def test_reserved_tokens_come_back_after_a_short_answer(shop: Shop) -> None:
    limit(shop, tokens_per_minute=10_000)

    ask(shop, max_tokens=9_000)

    eventually(lambda: remaining(shop) > 9_000, 10, "the reservation is settled")


def test_reserved_tokens_come_back_after_the_client_left(shop: Shop) -> None:
    limit(shop, tokens_per_minute=10_000)

    with shop.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=9_000, stream=True) as stream:
        next(iter(stream))

    eventually(lambda: remaining(shop) > 9_000, 10, "the reservation is settled")


def test_reserved_tokens_come_back_after_the_spend_limit_refused(shop: Shop) -> None:
    limit(shop, tokens_per_minute=10_000)
    with shop.app.state.services.db.write() as session:
        budgets.change_limit(session, project_id_of(shop, session), 0, actor="operator")
    shop.app.state.services.limited_projects = LimitedProjects()  # read anew

    with pytest.raises(openai.RateLimitError) as refused:
        ask(shop, max_tokens=9_000)
    assert refused.value.code == "project_spend_limit_exceeded"

    with shop.app.state.services.db.write() as session:
        budgets.change_limit(session, project_id_of(shop, session), None, actor="operator")
    shop.app.state.services.limited_projects = LimitedProjects()
    eventually(lambda: remaining(shop) > 9_000, 10, "the reservation is settled")


def test_background_response_counts_as_a_request(shop: Shop) -> None:
    limit(shop, requests_per_minute=1)
    create = shop.client.responses.create
    created = create(model=MODEL, input="Hello", background=True)

    for background in (True, False):
        with pytest.raises(openai.RateLimitError) as refused:
            create(model=MODEL, input="Hello", background=background)

        assert refused.value.type == "requests"
    stored: Any = shop.client.get("/responses", cast_to=object)
    assert [response["id"] for response in stored["data"]] == [created.id]


def test_limit_of_another_project_or_model_refuses_nothing(shop: Shop) -> None:
    limit(shop, requests_per_minute=0)

    with shop.stranger() as stranger:
        assert stranger.chat.completions.create(model=MODEL, messages=HELLO).choices
    with pytest.raises(openai.RateLimitError):
        ask(shop)
