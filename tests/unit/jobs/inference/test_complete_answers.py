"""Answers of sparse servers are completed with what was asked and OpenAI's defaults."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from jobs.inference.complete_answers import complete_chat, complete_event, complete_response, new_response, text_of

TEXT = {"format": {"type": "text"}}
#: What a server says that says as little as can be.
SPARSE: dict[str, Any] = {
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi."}]}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
TOOL = {"type": "function", "name": "weather"}


@pytest.mark.parametrize(
    ("asked", "most", "text"),
    [
        ({}, None, TEXT),
        ({"max_output_tokens": None, "text": None}, None, TEXT),
        ({"max_output_tokens": 9, "text": {"verbosity": "low"}}, 9, TEXT | {"verbosity": "low"}),
        ({"text": {"format": None}}, None, TEXT),
        ({"text": {"format": {"type": "json_object"}}}, None, {"format": {"type": "json_object"}}),
        ({"text": "odd"}, None, TEXT),
    ],
)
def test_limits_and_text_formats_follow_request(asked: dict[str, Any], most: int | None, text: dict[str, Any]) -> None:
    told = complete_response({"status": "in_progress", "max_output_tokens": 4000, "text": None}, asked)

    assert (told["max_output_tokens"], told["text"]) == (most, text)
    assert text_of(asked) == text


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ({"status": "completed"}, True),
        ({"status": "completed", "completed_at": None}, True),
        ({"status": "incomplete"}, False),
        ({"status": "failed", "error": {"code": "server_error"}}, False),
    ],
)
def test_a_completed_response_has_the_time_of_its_end(said: dict[str, Any], ends: bool) -> None:
    once = complete_response(said, {})

    assert isinstance(once.get("completed_at"), int) is ends
    assert complete_response(once, {}) == once
    assert once["error"] == said.get("error")


def test_a_time_that_is_known_stays() -> None:
    assert complete_response({"status": "completed", "completed_at": 5}, {})["completed_at"] == 5


def test_a_sparse_response_has_all_that_strict_clients_read() -> None:
    told = complete_response(SPARSE, {"model": "m"}, ended=7)

    Response.model_validate(told)
    assert told["id"].startswith("resp_")
    assert told["usage"] == {
        "input_tokens": 3, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5,
    }  # fmt: skip
    [message] = told["output"]
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    assert {name: told[name] for name in told.keys() - {"id", "output", "usage", "created_at"}} == {
        "object": "response", "model": "m", "status": "completed", "completed_at": 7, "error": None,
        "incomplete_details": None, "background": False, "metadata": {}, "previous_response_id": None,
        "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "parallel_tool_calls": True,
        "frequency_penalty": 0.0, "presence_penalty": 0.0,
        "prompt_cache_key": None, "reasoning": {"effort": None, "summary": None}, "safety_identifier": None,
        "service_tier": "auto", "temperature": 1.0, "text": TEXT, "tool_choice": "auto", "tools": [],
        "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "user": None,
    }  # fmt: skip


def test_request_fields_fill_gaps_in_engine_response() -> None:
    asked = {
        "model": "m", "instructions": "Be brief.", "tools": [TOOL], "parallel_tool_calls": False, "temperature": 0,
        "top_p": 0.5, "truncation": "auto", "top_logprobs": 2, "service_tier": "flex", "tool_choice": "required",
        "metadata": {"a": "b"}, "reasoning": {"effort": "low"}, "user": "u", "max_tool_calls": 3,
    }  # fmt: skip

    told = complete_response({**SPARSE, "temperature": None}, asked)

    repeated = asked | {"tools": [{**TOOL, "description": None, "parameters": None, "strict": None}]}
    repeated |= {"reasoning": {"effort": "low", "summary": None}}
    assert {name: told[name] for name in asked} == repeated
    Response.model_validate(told)


def test_tools_and_tool_choice_follow_request() -> None:
    asked = {"tools": [TOOL], "parallel_tool_calls": False, "tool_choice": "required"}
    said = {"tools": [{**TOOL, "name": "other"}], "parallel_tool_calls": True, "tool_choice": "auto"}

    told = complete_response({**SPARSE, **said}, asked)

    assert told["tools"] == [{**TOOL, "description": None, "parameters": None, "strict": None}]
    assert (told["parallel_tool_calls"], told["tool_choice"]) == (False, "required")
    told = complete_response({**SPARSE, **said, "parallel_tool_calls": False}, {})
    assert (told["tools"], told["parallel_tool_calls"], told["tool_choice"]) == ([], True, "auto")


def test_values_from_engine_are_preserved() -> None:
    said = {
        **SPARSE, "model": "theirs", "temperature": 0.3, "service_tier": "default", "instructions": "Theirs.",
        "usage": {**SPARSE["usage"], "total_tokens": 9, "input_tokens_details": {"cached_tokens": 1}},
    }  # fmt: skip

    told = complete_response(said, {"model": "m", "temperature": 1, "service_tier": "flex", "instructions": "Ours."})

    names = ("model", "temperature", "service_tier", "instructions")
    assert [told[name] for name in names] == [said[name] for name in names]
    assert told["usage"]["total_tokens"] == 9
    assert told["usage"]["input_tokens_details"] == {"cached_tokens": 1, "cache_write_tokens": 0}


def test_a_response_is_completed_once_however_often_it_is_done() -> None:
    once = complete_response(SPARSE, {"tools": [TOOL]})

    assert complete_response(once, {"tools": [TOOL]}) == once


def test_new_response_is_valid_without_output() -> None:
    told = new_response({"model": "m"}, "queued")

    Response.model_validate({"id": "resp_1", **told})
    assert (told["status"], told["output"], told["usage"]) == ("queued", [], None)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.created", "response": {"output": []}},
        {"type": "response.output_item.added", "item": {"type": "message"}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        {"type": "response.output_text.delta", "delta": "Hi."},
        {"type": "response.output_text.done", "text": "Hi."},
        {"type": "response.content_part.done", "part": {"type": "output_text", "text": "Hi."}},
        {"type": "response.output_item.done", "item": {"type": "message", "content": []}},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
        {"type": "response.refusal.delta", "delta": "No."},
        {"type": "response.reasoning_text.delta", "delta": "Hm."},
        {"type": "response.completed", "response": SPARSE},
        {"type": "response.incomplete", "response": SPARSE},
    ],
    ids=lambda event: str(event["type"]),
)
def test_a_sparse_event_has_all_that_strict_clients_read(event: dict[str, Any]) -> None:
    told = complete_event(event, {"model": "m"}, 3)

    TypeAdapter[Any](ResponseStreamEvent).validate_python(told)
    assert told["sequence_number"] == 3


def test_sparse_event_gets_status_from_event_type() -> None:
    kinds = ("created", "in_progress", "queued", "completed", "incomplete", "failed")
    told = [complete_event({"type": f"response.{kind}", "response": {}}, {}, 0)["response"] for kind in kinds]
    begun = complete_event({"type": "response.output_item.added", "item": {"type": "function_call"}}, {}, 0)
    delta = complete_event({"type": "response.function_call_arguments.delta", "delta": ""}, {}, 0)

    assert [one["status"] for one in told] == ["in_progress", *kinds[1:]]
    assert (begun["item"]["status"], begun["item"]["id"]) == ("in_progress", delta["item_id"])


def test_an_event_that_is_complete_stays() -> None:
    event = {
        "type": "response.output_text.delta", "delta": "Hi.", "item_id": "msg_1", "output_index": 1, "content_index": 2,
        "logprobs": [1], "sequence_number": 9,
    }  # fmt: skip

    assert complete_event(event, {}, 3) == event
    assert complete_event({"type": 5}, {}, 3) == {"type": 5, "sequence_number": 3}


def test_a_sparse_chat_has_all_that_strict_clients_read() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"choices": [{"message": {"content": "Hi."}}, {"message": {"tool_calls": [call]}}]}

    told = complete_chat(said, {"model": "m"})

    ChatCompletion.model_validate(told)
    assert told["id"].startswith("chatcmpl-")
    assert [choice["finish_reason"] for choice in told["choices"]] == ["stop", "tool_calls"]
    assert [choice["index"] for choice in told["choices"]] == [0, 1]
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "Hi.", "refusal": None}
    assert complete_chat(told, {}) == told
