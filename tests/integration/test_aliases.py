"""Aliases of a project, as the official SDK uses them: old names of models in unchanged code."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.integration.test_rate_limits import limit
from tests.support.interactive_api import HELLO, MODEL, Shop
from tests.support.system import eventually

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
