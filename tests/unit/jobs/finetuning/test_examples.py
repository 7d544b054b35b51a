"""Rows of training files: what is refused, with which code and param."""

import json
from typing import Any

import pytest

from jobs.batches.lines import Bad, InputLine
from jobs.finetuning import examples
from jobs.finetuning.payload import Method

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DPO: dict[str, Any] = {
    "input": {"messages": [USER]},
    "preferred_output": [ASSISTANT],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}


def check(row: Any, method: Method = "supervised", *, timed: bool = False) -> dict[str, Any] | Bad:
    raw = row if isinstance(row, bytes | None) else json.dumps(row).encode()
    return examples.check(InputLine(7, 0, 0, raw), method, timed=timed)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "developer", "content": "Be kind."}, USER, ASSISTANT | {"weight": 1}]},
        {"messages": [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "tools": [{"function": {"name": "f"}}]},
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "42"},
                ASSISTANT,
            ],
            "parallel_tool_calls": False,
            "metadata": {"source": "a"},
        },
    ],
)
def test_a_good_conversation_is_returned_as_it_is(row: dict[str, Any]) -> None:
    assert check(row) == row


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        (None, "line_too_long", None),
        (b"{nonsense", "invalid_json_line", None),
        (b'{"messages": NaN}', "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        ([], "invalid_type", None),
        ({}, "missing_required_parameter", "messages"),
        ({"messages": "Hi"}, "invalid_type", "messages"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": ["Hi"]}, "invalid_type", "messages[0]"),
        ({"messages": [USER, ASSISTANT], "prompt": 1}, "unknown_parameter", "prompt"),
        ({"messages": [USER | {"role": "robot"}, ASSISTANT]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"content": "Hi"}, ASSISTANT]}, "invalid_value", "messages[0].role"),
        ({"messages": [USER | {"content": ""}, ASSISTANT]}, "invalid_value", "messages[0].content"),
        ({"messages": [USER | {"content": []}, ASSISTANT]}, "invalid_value", "messages[0].content"),
        ({"messages": [USER | {"content": 4}, ASSISTANT]}, "invalid_type", "messages[0].content"),
        ({"messages": [USER | {"mood": "good"}, ASSISTANT]}, "unknown_parameter", "messages[0].mood"),
        ({"messages": [USER | {"weight": 1}, ASSISTANT]}, "invalid_value", "messages[0].weight"),
        ({"messages": [USER, ASSISTANT | {"weight": 0.5}]}, "invalid_value", "messages[1].weight"),
        ({"messages": [USER, ASSISTANT | {"weight": True}]}, "invalid_value", "messages[1].weight"),
        ({"messages": [USER, ASSISTANT | {"weight": 0}]}, "invalid_value", "messages"),
        ({"messages": [ASSISTANT, USER]}, "invalid_value", "messages[1].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]},
            "invalid_value",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "tool", "content": "1"}, ASSISTANT]},
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        ({"messages": [USER | {"tool_calls": [CALL]}, ASSISTANT]}, "invalid_value", "messages[0].tool_calls"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "invalid_value",
            "messages[1].tool_calls[0].function",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
            "invalid_value",
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"messages": [USER, ASSISTANT], "tools": {}}, "invalid_type", "tools"),
        ({"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]}, "invalid_value", "tools[0]"),
    ],
)
def test_invalid_row_is_refused_with_code_line_and_param(row: Any, code: str, param: str | None) -> None:
    found = check(row)

    assert isinstance(found, Bad)
    assert (found.code, found.line, found.param) == (code, 7, param)


def test_both_spellings_of_a_preference_are_good() -> None:
    other = {"input": DPO["input"], "preferred_completion": [ASSISTANT], "non_preferred_completion": [ASSISTANT]}

    assert check(DPO, "dpo") == DPO
    assert check(other, "dpo") == other


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        ({"messages": [USER, ASSISTANT]}, "unknown_parameter", "messages"),
        (DPO | {"input": None}, "missing_required_parameter", "input"),
        (DPO | {"input": {"messages": [USER, ASSISTANT]}}, "invalid_value", "input.messages[1].role"),
        (DPO | {"preferred_output": None}, "missing_required_parameter", "preferred_output"),
        (DPO | {"preferred_completion": [ASSISTANT]}, "invalid_value", "preferred_completion"),
        (DPO | {"preferred_output": [USER]}, "invalid_value", "preferred_output"),
        (DPO | {"non_preferred_output": [ASSISTANT, ASSISTANT]}, "invalid_value", "non_preferred_output"),
    ],
)
def test_a_bad_preference_is_refused(row: Any, code: str, param: str) -> None:
    found = check(row, "dpo")

    assert isinstance(found, Bad)
    assert (found.code, found.param) == (code, param)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [(12, 12.0), (1.5, 1.5), ("1970-01-01T00:01:00Z", 60.0), ("1970-01-01", 0.0), ("1970-01-01T01:00+01:00", 0.0)],
)
def test_the_time_of_a_row_is_a_number_or_iso_8601(time: object, seconds: float) -> None:
    assert examples.time_of({"metadata": {"time": time}}) == seconds


@pytest.mark.parametrize("metadata", [None, {}, {"time": "soon"}, {"time": True}, [1]])
def test_temporal_validation_refuses_rows_without_a_time(metadata: object) -> None:
    found = check({"messages": [USER, ASSISTANT], "metadata": metadata}, timed=True)

    assert isinstance(found, Bad)
    assert (found.code, found.param) == ("invalid_value", "metadata.time")


def test_rows_that_differ_in_spelling_or_metadata_alone_are_the_same() -> None:
    one = json.loads('{"messages": [{"role": "user", "content": "é"}], "metadata": {"a": "1"}}')
    other = json.loads('{"messages": [{"content": "\\u00e9", "role": "user"}]}')

    assert examples.canonical(one) == examples.canonical(other)
    assert examples.canonical(one) != examples.canonical({"messages": [{"role": "user", "content": "e"}]})
