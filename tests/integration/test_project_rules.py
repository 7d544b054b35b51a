"""Service tiers and data retention of a project, as the official SDK meets them."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from jobs.inference.interactive import QueuedRequest
from jobs.security import keys
from jobs.security.tables import ApiKey, Project
from tests.support.interactive_api import HELLO, MODEL, Shop
from workers.inference import consumer
from workers.inference.answer_meter import AnswerMeter


def project_of(shop: Shop, session: Any) -> Project:
    key = session.get_one(ApiKey, keys.id_of(str(shop.client.api_key)))
    return session.get_one(Project, key.project_id)  # type: ignore[no-any-return]


@pytest.fixture
def tiered(shop: Shop) -> Callable[..., Shop]:
    """Return a function that sets the tiers of the project."""

    def set_tiers(default: str = "standard", enabled: Any = "all") -> Shop:
        with shop.app.state.services.db.write() as session:
            project_of(shop, session).service_tiers = {"default": default, "enabled": enabled}
        return shop

    return set_tiers


@pytest.mark.parametrize(
    ("requested", "default", "ran"),
    [
        (None, "standard", "default"),
        ("auto", "standard", "default"),
        ("default", "fast", "default"),
        ("auto", "fast", "priority"),
        (None, "fast", "priority"),
        ("flex", "standard", "flex"),
        ("priority", "standard", "priority"),
        ("fast", "standard", "priority"),
    ],
)
def test_answer_and_its_stream_name_the_tier_that_ran(
    tiered: Callable[..., Shop], requested: str | None, default: str, ran: str
) -> None:
    shop = tiered(default)
    given: Any = {} if requested is None else {"service_tier": requested}

    chat = shop.client.chat.completions.create(model=MODEL, messages=HELLO, **given)
    chunks = list(shop.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **given))
    response = shop.client.responses.create(model=MODEL, input="Hello", store=False, **given)

    assert (chat.service_tier, response.service_tier) == (ran, ran)
    assert {chunk.service_tier for chunk in chunks} == {ran}


def test_request_tells_its_worker_the_tier_of_its_usage(
    tiered: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, tiers = tiered(), list[str]()

    def meter_of(request: QueuedRequest, *arguments: Any) -> AnswerMeter:
        tiers.append(request.tier)
        return AnswerMeter(request, *arguments)

    monkeypatch.setattr(consumer, "AnswerMeter", meter_of)
    for tier in ("flex", "fast", "default"):
        shop.client.chat.completions.create(model=MODEL, messages=HELLO, service_tier=tier)

    assert tiers == ["flex", "priority", "default"]


@pytest.mark.parametrize("tier", ["flex", "priority", "fast", "scale", "ultrafast"])
def test_tier_that_is_not_enabled_is_refused(shop: Shop, tier: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="not allowed for this project") as refused:
        shop.client.chat.completions.create(model=MODEL, messages=HELLO, service_tier=tier)

    assert refused.value.param == "service_tier"


def test_zero_data_retention_stores_no_answers(shop: Shop) -> None:
    with shop.app.state.services.db.write() as session:
        project_of(shop, session).retention = "zero_data_retention"

    chat = shop.client.chat.completions.create(model=MODEL, messages=HELLO, store=True)
    response = shop.client.responses.create(model=MODEL, input="Hello")

    assert chat.choices[0].message.content
    assert response.store is False
    assert shop.objects("completions") == shop.objects("responses") == []
    with pytest.raises(openai.BadRequestError):
        shop.client.responses.create(model=MODEL, input="Hello", background=True)
