"""A kept response written out as the events that an engine's stream has."""

from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from api.inference.response_streams import _Items
from jobs.inference.answer_events import events_of_response

CITED = {"type": "file_citation", "file_id": "file-1", "filename": "cats.md", "index": 10}
TEXT = {"type": "output_text", "text": "They purr.", "annotations": [CITED, {**CITED, "index": 3}], "logprobs": []}
SEARCH: dict[str, Any] = {
    "type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["Cats?"],
    "results": [{"file_id": "file-1", "filename": "cats.md", "score": 0.9, "text": "Cats purr.", "attributes": {}}],
}  # fmt: skip
THOUGHT = {
    "type": "reasoning", "id": "rs_1", "status": "completed", "summary": [],
    "content": [{"type": "reasoning_text", "text": "Cats, then."}],
}  # fmt: skip
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"}


def message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": list(parts)}


def written(*items: dict[str, Any], **facts: Any) -> list[dict[str, Any]]:
    base = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "error": None}
    base |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return events_of_response({**base, "output": list(items), **facts})


@pytest.mark.parametrize(
    ("item", "kinds"),
    [
        (SEARCH, ["file_search_call.in_progress", "file_search_call.searching", "file_search_call.completed"]),
        (THOUGHT, ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"]),
        (
            {**THOUGHT, "content": None, "summary": [{"type": "summary_text", "text": "Cats."}]},
            ["reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done",
             "reasoning_summary_part.done"],
        ),
        (CALL, ["function_call_arguments.delta", "function_call_arguments.done"]),
        (
            message(TEXT),
            ["content_part.added", "output_text.delta", "output_text.annotation.added", "output_text.annotation.added",
             "output_text.done", "content_part.done"],
        ),
        (
            message({"type": "refusal", "refusal": "No."}),
            ["content_part.added", "refusal.delta", "refusal.done", "content_part.done"],
        ),
    ],
)  # fmt: skip
def test_an_item_begins_empty_and_ends_whole(item: dict[str, Any], kinds: list[str]) -> None:
    events = written(item)

    around = ["output_item.added", *kinds, "output_item.done"]
    assert [event["type"].removeprefix("response.") for event in events[2:-1]] == around
    begun = events[2]["item"]
    assert begun["status"] == "in_progress"
    assert not any(begun.get(name) for name in ("content", "summary", "results", "arguments"))
    assert events[-2]["item"] == item
    assert all(event.get("output_index", 0) == 0 for event in events)
    for event in events:  # an SDK makes of each what it is
        read: Any = TypeAdapter(ResponseStreamEvent).validate_python(event)
        assert read.type == event["type"]


def test_content_part_starts_empty_and_annotations_follow() -> None:
    [begun] = [event for event in written(message(TEXT)) if event["type"] == "response.content_part.added"]
    added = [event for event in written(message(TEXT)) if event["type"].endswith("annotation.added")]

    assert begun["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [(one["annotation_index"], one["annotation"]["index"], one["item_id"]) for one in added] == [
        (0, 10, "msg_1"), (1, 3, "msg_1"),
    ]  # fmt: skip


def test_items_come_in_their_order_and_the_end_is_the_response_s() -> None:
    ends = {"completed_at": 5, "incomplete_details": {"reason": "max_output_tokens"}}
    events = written(SEARCH, THOUGHT, message(TEXT), status="incomplete", **ends)

    begun = events[0]["response"]
    assert [begun[name] for name in ("status", "completed_at", "incomplete_details")] == ["in_progress", None, None]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [(event["output_index"], event["item"]["type"]) for event in added] == [
        (0, "file_search_call"), (1, "reasoning"), (2, "message"),
    ]  # fmt: skip
    assert events[-1]["type"] == "response.incomplete"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_an_item_that_is_begun_ends_as_the_answer_has_it_or_incomplete() -> None:
    items = _Items()
    for index, item in enumerate((THOUGHT, message())):
        begun = {"type": "response.output_item.added", "output_index": index, "item": item, "sequence_number": index}
        assert items.is_shown(begun)

    ends = items.ends({"output": [CALL, message({"type": "output_text", "text": "Hi."})]})

    assert [end["item"]["id"] for end in ends] == ["rs_1", "msg_1"]
    assert [end["item"]["status"] for end in ends] == ["incomplete", "completed"]
    assert ends[1]["item"]["content"] == [{"type": "output_text", "text": "Hi."}]
