"""A conversation compacted and gone on from: the official SDK, the real API and its Redis, a consumer over a fake."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import openai
import pytest

from jobs.inference import compaction
from tests.support.fake_engine import prompt_of
from tests.support.interactive_api import MODEL, Shop
from tests.unit.workers.middleware.context_window.engines import Nobody
from workers.engines.port import Answer, Length, Request
from workers.middleware.compaction import CompactionMiddleware
from workers.middleware.context_window import ContextWindow

pytestmark = pytest.mark.verify

LIMIT = 700  # words, of which an answer has 512


async def _words(request: Request) -> Length:
    return Length(len(prompt_of(request.url, request.body).split()), LIMIT)


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop(around=lambda engine: CompactionMiddleware(ContextWindow(engine, _words, Nobody())))
    with made.open():
        yield made


def _summary(item: Any) -> str:
    return compaction.unpack(item.encrypted_content)


def test_user_messages_stay_and_model_summarizes_rest(shop: Shop) -> None:
    first = shop.client.responses.create(model=MODEL, input="one two")

    made = shop.client.responses.compact(model=MODEL, input="three", previous_response_id=first.id)

    assert made.object == "response.compaction"
    assert [(item.type, getattr(item, "role", None)) for item in made.output] == [
        ("message", "user"), ("message", "user"), ("compaction", None),
    ]  # fmt: skip
    assert [item.content[0].text for item in made.output[:2]] == ["one two", "three"]  # type: ignore[union-attr]
    asked = shop.asked[-1].split("\n")
    assert asked[:3] == ["one two", first.output_text, "three"]
    assert asked[3].startswith("Summarize the whole conversation above")
    assert _summary(made.output[-1]).startswith("echo ")
    assert made.usage.output_tokens > 0
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert shop.objects("responses") == [f"responses/{first.id}"]  # nothing new is kept


def test_compaction_passes_instructions_and_drops_cache_and_tier_fields(
    make_shop: Callable[..., Shop],
) -> None:
    told: list[dict[str, Any]] = []
    shop = make_shop(engine={"fault": lambda request: told.append(request.body)})
    with shop.open():
        shop.client.responses.compact(
            model=MODEL, input="one", instructions="Be brief.", prompt_cache_key="k", service_tier="flex"
        )

    assert told[0].keys() == {"model", "instructions", "input", "max_output_tokens", "temperature", "store", "context"}
    assert told[0]["instructions"] == "Be brief."


def test_compacted_input_can_be_continued_and_recompacted(shop: Shop) -> None:
    made = shop.client.responses.compact(model=MODEL, input="one two")
    given: Any = [item.to_dict(warnings=False) for item in made.output]

    said = shop.client.responses.create(model=MODEL, input=[*given, {"role": "user", "content": "three"}])
    more = shop.client.responses.create(model=MODEL, input="four", previous_response_id=said.id)
    again = shop.client.responses.compact(model=MODEL, input=given)

    note = f"Summary of the conversation until here:\n> {_summary(made.output[-1])}"
    assert shop.asked[-3] == f"one two\n\n{note}\n\nthree"
    assert shop.asked[-2] == f"one two\n\n{note}\n\nthree\n{said.output_text}\nfour"
    assert shop.asked[-1].startswith(f"one two\n\n{note}\n\nSummarize the whole conversation above")
    assert [item.type for item in again.output] == ["message", "compaction"]
    kept = shop.client.responses.input_items.list(more.id, order="asc")
    assert [item.type for item in kept] == ["message", "compaction", "message", "message", "message"]


def test_a_conversation_beyond_the_context_is_summarized_in_parts(shop: Shop) -> None:
    long = "word " * 400

    made = shop.client.responses.compact(model=MODEL, input=[{"role": "user", "content": long}] * 3)

    assert len(shop.asked) > 3
    assert shop.asked[-1].startswith("Summary of the earlier conversation:\n> echo ")
    assert "Summarize the whole conversation above" in shop.asked[-1]
    assert [item.type for item in made.output] == ["message"] * 3 + ["compaction"]


def test_an_engine_that_says_nothing_gives_no_summary(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = shop.engine.answer

    async def silent(request: Request) -> Answer:
        said = await answer(request)
        body = msgspec.json.decode(said.body)
        body["output"][0]["content"][0]["text"] = " "
        return Answer(200, msgspec.json.encode(body))

    monkeypatch.setattr(shop.engine, "answer", silent)

    with pytest.raises(openai.InternalServerError) as raised:
        shop.client.responses.compact(model=MODEL, input="one two")

    assert raised.value.code == "engine_error"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": "x", "instructions": 3}, "instructions", "invalid_type"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAAAABpM0Yj"}]}, "input[0]", "invalid_value"),
    ],
)
def test_invalid_request_names_wrong_parameter(shop: Shop, fields: dict[str, Any], param: str, code: str) -> None:
    said = shop.post("responses/compact", {"model": MODEL, **fields})

    error = said.json()["error"]
    assert (said.status_code, error["param"], error["code"]) == (400, param, code)
    assert shop.asked == []


def test_summary_sealed_by_other_server_is_refused_at_once(shop: Shop) -> None:
    sealed: Any = [{"type": "compaction", "encrypted_content": "gAAAAABpM0Yj"}]

    for background in (False, True):
        with pytest.raises(openai.BadRequestError, match="is not a summary of this server"):
            shop.client.responses.create(model=MODEL, input=sealed, background=background)
    assert shop.asked == []
