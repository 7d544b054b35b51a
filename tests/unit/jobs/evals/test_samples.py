"""Samples that came with items: whole answers, as a client's SDK dumps them, and what a client wrote by hand."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from jobs.evals.samples import sample_from_given, sample_from_text, text_of

CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "extract_symbols", "arguments": '{"symbols": ["a"]}'},
}


def completion(message: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    """Return a completion as `model_dump()` of OpenAI's SDK does, with all fields of its types."""
    choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": {"role": "assistant", **message}}
    fields = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini-2024-07-18"}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    return ChatCompletion.model_validate({**fields, "choices": [choice], "usage": usage}).model_dump()


def response(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    known = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-4o", "status": "completed"}
    asked = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    return Response.model_validate({**known, **asked, "output": list(output), **fields}).model_dump()


def text(content: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": content, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}


def test_dumped_completion_is_read_as_an_answer_and_stays_whole() -> None:
    given = completion({"content": '{"a": 1}', "refusal": None})

    sample = sample_from_given(given)

    assert (sample["output_text"], sample["output_json"], sample["output_tools"]) == ('{"a": 1}', {"a": 1}, [])
    assert {name: sample[name] for name in given} == given


def test_completion_that_was_made_by_hand_is_read() -> None:
    """The notebook `regression` of OpenAI's cookbook makes one of a response."""
    message = {"role": "assistant", "content": "Paris"}
    given = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    assert sample_from_given(given)["output_text"] == "Paris"


def test_calls_and_audio_of_a_completion_are_read() -> None:
    audio = {"id": "audio_1", "data": "UklGRg==", "expires_at": 9, "transcript": "Hello"}

    called = sample_from_given(completion({"content": None, "tool_calls": [CALL]}, "tool_calls"))
    spoken = sample_from_given(completion({"content": None, "audio": audio}))

    assert (called["output_text"], called["output_tools"]) == ("", [CALL])
    assert spoken["output_audio"] == audio


def test_dumped_response_is_read_as_an_answer() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "status": "completed", **CALL["function"]}

    sample = sample_from_given(response(text("Par"), text("is"), call))

    assert (sample["output_text"], sample["output_tools"]) == ("Paris", [CALL])
    assert sample["choices"][0]["finish_reason"] == "tool_calls"
    assert sample["model"] == "gpt-4o"


def test_text_that_was_given_is_read_as_that_of_a_model() -> None:
    given = {"output_text": '{"a": 1}', "model": "theirs"}

    assert sample_from_given(given) == {**sample_from_text('{"a": 1}'), "model": "theirs"}


def test_fields_that_were_given_are_not_replaced() -> None:
    given = {**completion({"content": "a"}), "output_text": "mine"}

    assert sample_from_given(given)["output_text"] == "mine"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"score": 1},
        {"choices": None},
        {"choices": []},
        {"choices": {"message": "x"}},
        {"choices": ["x"]},
        {"choices": [{"message": None}]},
        {"output": "text"},
        {"output": None},
        {"output": [{"type": "message"}]},
        {"output": [], "status": "failed"},
        {"output_text": 5},
    ],
)
def test_sample_that_is_no_answer_is_left_alone(given: dict[str, Any]) -> None:
    assert sample_from_given(given) == given


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text", "text"),
        (None, ""),
        ([{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": "data:"}],
         "What is this?\n[input_image]"),
        (["plain", {"type": "refusal", "refusal": "No."}], "plain\nNo."),
        ([{"type": "image_url", "image_url": {"url": "data:"}}], "[image_url]"),
        ([5, {"type": None}], "\n"),
    ],
)  # fmt: skip
def test_message_content_is_flattened_to_text(content: Any, expected: str) -> None:
    assert text_of(content) == expected
