"""Chunks of a stream, put together."""

from typing import Any

import pytest

from api.inference.chunks import Chunks

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def told(*deltas: dict[str, Any], end: str | None = "stop", index: int = 0) -> list[dict[str, Any]]:
    """Make a stream of one choice."""
    said = [{**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = [{**HEAD, "choices": [{"index": index, "delta": {}, "finish_reason": end}]}]
    return said + last if end else said


def whole(*chunks: dict[str, Any]) -> dict[str, Any] | None:
    together = Chunks()
    for chunk in chunks:
        together.add(chunk)
    return together.whole()


def test_text_chunks_merge_into_completion_with_fingerprint_and_usage() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    chunks = told({"role": "assistant", "content": ""}, {"content": "one"}, {"content": " two"})
    chunks[0] |= {"system_fingerprint": "fp", "usage": None}

    found = whole(*chunks, {**HEAD, "choices": [], "usage": usage})

    message = {"role": "assistant", "content": "one two", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {name: value for name, value in HEAD.items() if name != "object"}
    assert found == {**head, "system_fingerprint": "fp", "usage": usage, "choices": [choice]}


def test_interleaved_choices_are_merged_separately_and_sorted_by_index() -> None:
    one, two = told({"content": "a"}, {"content": "b"}, index=1), told({"content": "c"}, {"content": "d"})

    found = whole(*(chunk for pair in zip(one, two, strict=True) for chunk in pair))

    assert found
    assert [(choice["index"], choice["message"]["content"]) for choice in found["choices"]] == [(0, "cd"), (1, "ab")]


def test_calls_of_tools_come_together_by_their_number() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    chunks = told(
        {"role": "assistant", "content": None},
        {"tool_calls": [{**call(0, name="now", arguments=""), "id": "call_1", "type": "function"}]},
        {"tool_calls": [call(0, arguments='{"of":')]},
        {"tool_calls": [{**call(1, name="then", arguments="{}"), "id": "call_2", "type": "function"}]},
        {"tool_calls": [{**call(0, arguments='"x"}'), "type": "function"}]},
        end="tool_calls",
    )

    found = whole(*chunks)

    assert found
    [choice] = found["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"of":"x"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "then", "arguments": "{}"}},
    ]


def test_repeated_names_ids_and_roles_are_not_concatenated() -> None:
    def call(**named: str) -> dict[str, Any]:
        return {"index": 0, "id": "call_1", "type": "function", "function": {"arguments": "x", **named}}

    chunks = told(
        {"role": "assistant", "tool_calls": [call(name="now")]},
        {"role": "assistant", "tool_calls": [call(name="now")]},
        {"role": "", "tool_calls": [{**call(name=""), "id": ""}]},
        {"role": None, "tool_calls": [{**call(), "id": None}]},
    )
    for chunk in chunks:
        chunk["choices"][0]["service"] = "fast"

    found = whole(*chunks)

    assert found
    [choice] = found["choices"]
    made = {"id": "call_1", "type": "function", "function": {"arguments": "xxxx", "name": "now"}}
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [made]}
    assert (choice["service"], choice["finish_reason"]) == ("fast", "stop")


@pytest.mark.parametrize(
    "parts",
    [["get_", "weather"], ["get", "_", "weather"], ["", "get_", "weather", ""], ["get_", "weather", "get_weather"]],
)
def test_function_name_sent_in_parts_is_concatenated(parts: list[str]) -> None:
    def call(name: str) -> dict[str, Any]:
        return {"index": 0, "function": {"name": name}}

    first, *more = parts
    head = {**call(first), "id": "call_1", "type": "function"}
    found = whole(*told({"tool_calls": [head]}, *({"tool_calls": [call(part)]} for part in more)))

    assert found
    assert found["choices"][0]["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather"}}
    ]


def test_missing_role_defaults_to_assistant() -> None:
    found = whole(*told({"role": None, "content": "a"}, {"role": "", "content": "b"}))

    assert found
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "ab", "refusal": None}


def test_token_ids_are_concatenated_in_linear_time() -> None:
    class Token(int):
        seen = 0

        @property
        def __class__(self) -> Any:
            Token.seen += 1
            return int

    chunks = told(*({"content": "x"} for _ in range(100)))
    for n, chunk in enumerate(chunks):
        chunk["choices"][0]["token_ids"] = [Token(n)]

    found = whole(*chunks)

    assert found
    assert found["choices"][0]["token_ids"] == list(range(101))
    assert Token.seen <= 2 * 101


def test_log_probabilities_are_concatenated() -> None:
    chunks = told({"content": "a"}, {"content": "b"})
    for chunk, token in zip(chunks, "ab", strict=False):
        chunk["choices"][0]["logprobs"] = {"content": [{"token": token}], "refusal": None}

    found = whole(*chunks)

    assert found
    assert found["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        told({"content": "a"}, end=None),
        [*told({"content": "a"}), *told({"content": "b"}, end=None, index=1)],
        [*told({"content": "a"}), {"error": {"message": "It broke."}}],
    ],
    ids=["nothing", "cut", "one of two", "broken"],
)
def test_incomplete_stream_yields_no_completion(chunks: list[dict[str, Any]]) -> None:
    assert whole(*chunks) is None
