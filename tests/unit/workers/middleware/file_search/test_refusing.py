"""Refusals of what the files do not support, where they were asked for: whole, and as a stream."""

from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.unit.workers.middleware.file_search.test_file_search_engine import (
    CATS,
    DOGS,
    TOOL,
    Echo,
    FakeSearch,
    answered,
    asked,
)
from workers.middleware.file_search.excerpts import ContextBudget
from workers.middleware.file_search.middleware import FileSearchMiddleware
from workers.middleware.file_search.refusal import REFUSAL
from workers.middleware.file_search.tool import for_engine

STRICT = {**TOOL, "refuse": True}
MADE_UP = "Fish swim quietly through distant coral reefs [1]."


async def streamed(engine: Echo, fake_search: FakeSearch, tool: dict[str, Any]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []

    async def emit(chunk: bytes) -> None:
        events.append(msgspec.json.decode(chunk))

    answer = await FileSearchMiddleware(engine, fake_search.search, lambda _: ContextBudget(10_000)).stream(
        asked(tool), emit
    )
    assert answer.status == 200
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def refused(response: dict[str, Any]) -> bool:
    assert [item["type"] for item in response["output"]] == ["file_search_call", "message"]
    return bool(response["output"][1]["content"] == [{"type": "refusal", "refusal": REFUSAL}])


async def test_empty_search_result_is_refused_without_engine_request() -> None:
    engine = Echo()

    body = await answered(asked(STRICT, instructions="Be brief."), engine, FakeSearch(vs_1=[]))

    assert engine.asked == []
    assert refused(body)
    assert (body["instructions"], body["tools"], body["usage"]["total_tokens"]) == ("Be brief.", [STRICT], 0)
    assert Response.model_validate(body, strict=False).output_text == ""


async def test_refusal_is_disabled_by_default() -> None:
    engine = Echo(MADE_UP)

    for tool in (TOOL, {**TOOL, "refuse": False}):
        assert not refused(await answered(asked(tool), engine, FakeSearch(vs_1=[])))
        assert not refused(await answered(asked(tool), engine, FakeSearch()))


@pytest.mark.parametrize(
    ("text", "tool", "no"),
    [
        (MADE_UP, STRICT, True),
        ("Cats purr when they are content [1].", STRICT, False),
        ("Cats purr, fish swim.", {**TOOL, "refuse": {"support": 0.4}}, False),
        ("Cats purr, fish swim.", {**TOOL, "refuse": {"support": 0.6}}, True),
        ("", STRICT, True),
        (MADE_UP, {**TOOL, "refuse": {"support": 0}}, False),
    ],
)
async def test_an_answer_that_stands_in_no_excerpt_is_refused(text: str, tool: dict[str, Any], no: bool) -> None:
    whole = await answered(asked(tool), Echo(text), FakeSearch())
    events = await streamed(Echo(text), FakeSearch(), tool)

    assert refused(whole) is no
    assert refused(events[-1]["response"]) is no


async def test_refused_stream_never_reveals_generated_text() -> None:
    events = await streamed(Echo(MADE_UP), FakeSearch(), STRICT)

    assert "Fish" not in str(events)
    assert [event["type"].removeprefix("response.") for event in events[6:]] == [
        "output_item.added", "content_part.added", "refusal.delta", "refusal.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert {event["output_index"] for event in events[6:-1]} == {1}
    assert events[8]["delta"] == events[9]["refusal"] == REFUSAL


async def test_a_stream_that_is_supported_comes_whole_and_unchanged() -> None:
    text = "Cats purr when they are content [1]."

    held = await streamed(Echo(text), FakeSearch(), STRICT)
    plain = await streamed(Echo(text), FakeSearch(), TOOL)

    assert [event["type"] for event in held] == [event["type"] for event in plain]
    assert held[6:-1] == plain[6:-1]


async def test_where_nothing_is_found_the_stream_refuses_and_the_sdk_can_read_it() -> None:
    engine = Echo()

    events = await streamed(engine, FakeSearch(vs_1=[]), STRICT)

    assert engine.asked == []
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-6:] == [
        "content_part.added", "refusal.delta", "refusal.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert "file_search_call.completed" in kinds
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    assert [type(adapter.validate_python(event)).__name__ for event in events if "refusal" in event["type"]] == [
        "ResponseRefusalDeltaEvent",
        "ResponseRefusalDoneEvent",
    ]
    assert refused(events[-1]["response"])


async def test_a_call_of_a_function_is_no_statement() -> None:
    class Calls(Echo):
        async def answer(self, request: Any) -> Any:
            answer = await super().answer(request)
            body = msgspec.json.decode(answer.body)
            body["output"] = [{"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}]
            return type(answer)(200, msgspec.json.encode(body), answer.usage)

    body = await answered(asked(STRICT), Calls(), FakeSearch())

    assert [item["type"] for item in body["output"]] == ["file_search_call", "function_call"]


async def test_refusal_of_earlier_turn_is_sent_as_output_text() -> None:
    engine = Echo()
    refusal = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    items = [{"role": "user", "content": "a"}, {"type": "file_search_call", "id": "fs"}, refusal, "odd"]

    await answered(asked(input=items, tools=[]), engine, FakeSearch())

    [request] = engine.asked
    assert request.body["input"] == [
        items[0], {**refusal, "content": [{"type": "output_text", "text": "No.", "annotations": []}]}, "odd",
    ]  # fmt: skip
    assert for_engine(request) is request


async def test_joined_neighbours_are_cited_by_their_excerpt_number() -> None:
    later = msgspec.structs.replace(CATS, n=5, meta={"start": 32, "end": 64})
    before = msgspec.structs.replace(CATS, score=0.1, text="Dogs bark at cats.", n=4, meta={"start": 0, "end": 32})
    engine = Echo("They bark at cats [1].")

    body = await answered(asked(include=["file_search_call.results"]), engine, FakeSearch(vs_1=[later, DOGS, before]))

    call, said = body["output"]
    assert [one["text"] for one in call["results"]] == [later.text, DOGS.text, before.text]
    assert said["content"][0]["annotations"][0]["chunk"] == 4
