"""Feedback on what an engine has answered, as the official SDK gives it: an alias, two ways to ask, a model each."""

from typing import Any

import pytest
from openai import OpenAI

from tests.integration.test_aliases import make_alias
from tests.support.interactive_api import HELLO, MODEL, Shop

NAME = "support-assistant"


@pytest.fixture
def client(shop: Shop) -> OpenAI:
    """Return a client of a project that has an alias of the served model."""
    make_alias(shop.client, NAME)
    return shop.client


def rate(client: OpenAI, score: float, **target: Any) -> Any:
    body = {"target": target, "score": score, "user": "ada"}
    return client.post("/feedback", body=body, cast_to=object)


def test_feedback_names_the_model_and_the_alias_of_each_stored_answer(client: OpenAI) -> None:
    chat = client.chat.completions.create(model=NAME, messages=HELLO, store=True)
    response = client.responses.create(model=NAME, input="Hello")
    saved = [
        rate(client, 1, type="chat.completion", completion_id=chat.id),
        rate(client, -1, type="response", response_id=response.id),
    ]

    assert {(row["model"], row["requested_model"]) for row in saved} == {(MODEL, NAME)}
    query = {"params": {"requested_model": NAME}}
    summary: Any = client.get("/feedback/summary", cast_to=object, options=query)
    assert [(row["model"], row["count"], row["positive"]) for row in summary["data"]] == [(MODEL, 2, 1)]


def test_stream_that_is_stored_is_rated_by_the_id_of_its_chunks(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, store=True, stream=True))

    saved = rate(client, 0.5, type="chat.completion", completion_id=chunks[0].id)

    assert (saved["score"], saved["model"]) == (0.5, MODEL)
