"""Aliases as feature flags, as OpenFeature's own provider asks for them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from tests.integration.test_aliases import RIVAL, rivals, split
from tests.support.interactive_api import HELLO, MODEL, Shop

assert rivals  # a fixture


@pytest.fixture
def flags(rivals: Shop) -> Iterator[OpenFeatureClient]:
    """Yield a client of OpenFeature whose provider asks the server with the project's key."""
    headers = {"Authorization": f"Bearer {rivals.client.api_key}"}
    api.set_provider(OFREPProvider(str(rivals.client.base_url), headers_factory=lambda: headers), "nightmill")
    yield api.get_client("nightmill")
    api.clear_providers()


def test_user_of_a_flag_has_the_model_of_their_requests(rivals: Shop, flags: OpenFeatureClient) -> None:
    split(rivals.client, "tone", sticky=True)
    users = [f"user-{n}" for n in range(40)]

    drawn = {user: flags.get_string_value("tone", "", EvaluationContext(user)) for user in users}

    chat: Any = rivals.client.chat.completions
    answers = {user: chat.create(model="tone", messages=HELLO, safety_identifier=user).model for user in users}
    assert drawn == answers
    assert set(drawn.values()) == {MODEL, RIVAL}


def test_flag_draws_by_the_weights_and_says_so(rivals: Shop, flags: OpenFeatureClient) -> None:
    split(rivals.client, "tone")
    rivals.client.post("/aliases", body={"id": "fixed", "model": RIVAL}, cast_to=object)

    drawn = Counter(flags.get_string_value("tone", "") for _ in range(60))
    several, single = flags.get_string_details("tone", ""), flags.get_string_details("fixed", "")

    assert drawn.keys() == {MODEL, RIVAL}
    assert (several.reason, several.variant) == (Reason.SPLIT, several.value)
    assert several.flag_metadata == {"incumbent": MODEL, "sticky": False}
    assert (single.reason, single.value) == (Reason.STATIC, RIVAL)


def test_missing_flag_gives_the_default(flags: OpenFeatureClient) -> None:
    details = flags.get_string_details("gone", "small-model")

    assert (details.value, details.error_code) == ("small-model", ErrorCode.FLAG_NOT_FOUND)


def test_errors_have_the_fields_of_both_protocols(rivals: Shop) -> None:
    url = f"{rivals.client.base_url}ofrep/v1/evaluate/flags/gone"
    headers = {"Authorization": f"Bearer {rivals.client.api_key}"}
    answers = [httpx2.post(url, json={"context": {"targetingKey": key}}, headers=headers) for key in ("user-1", 1)]

    bodies = [answer.json() for answer in answers]
    assert [answer.status_code for answer in answers] == [404, 400]
    assert [body["errorCode"] for body in bodies] == ["FLAG_NOT_FOUND", "INVALID_CONTEXT"]
    assert [body["error"]["param"] for body in bodies] == ["alias", "context.targetingKey"]
    assert {body["key"] for body in bodies} == {"gone"}
