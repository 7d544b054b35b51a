"""Requests that name a prompt: whose fields count, and a prompt in the fields of chat completions."""

from typing import Any

import pytest

from jobs.errors import InvalidRequest
from jobs.prompts import resolution, versions
from jobs.prompts.resolution import PinnedPrompts, PromptReference, ResolvedPrompt
from jobs.requests.endpoints import CHAT, RESPONSES

_SCHEMA = {"name": "s", "strict": True, "schema": {"type": "object"}}
SCHEMA = {"type": "json_schema", **_SCHEMA}
FUNCTION = {"type": "function", "name": "f", "parameters": {}}


def prompt(**content: Any) -> ResolvedPrompt:
    given = {"instructions": "Be brief.", **content}
    complete = versions.complete(given)
    return ResolvedPrompt("pmpt_1", 1, complete.hash, complete.bytes, complete.value)


def test_request_takes_precedence_over_prompt() -> None:
    used = prompt(model="m", tools=[FUNCTION], parameters={"temperature": 0.1, "top_p": 0.5})

    body = used.apply(RESPONSES, {"input": "a", "temperature": 0, "tools": [], "top_p": None, "prompt": {}}, {})

    assert body == {
        "model": "m", "instructions": "Be brief.", "temperature": 0, "top_p": 0.5, "tools": [], "input": "a",
    }  # fmt: skip


def test_messages_of_prompt_come_first() -> None:
    used = prompt(messages=[{"role": "developer", "content": "x {{a}}"}])

    assert used.apply(RESPONSES, {"input": "b"}, {"a": "1"})["input"] == [
        {"role": "developer", "content": "x 1"}, {"role": "user", "content": "b"},
    ]  # fmt: skip
    assert used.apply(RESPONSES, {}, {"a": "1"})["input"] == [{"role": "developer", "content": "x 1"}]


def test_chat_has_fields_of_prompt_under_its_own_names() -> None:
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "https://h/a.png", "detail": "low"},
        {"type": "input_file", "file_id": "file-1"},
    ]
    used = prompt(
        messages=[{"role": "user", "content": parts}],
        tools=[FUNCTION],
        tool_choice={"type": "function", "name": "f"},
        text={"format": SCHEMA, "verbosity": "low"},
        parameters={
            "max_output_tokens": 9, "reasoning": {"effort": "low"}, "truncation": "auto", "top_logprobs": 2, "seed": 1,
        },
    )  # fmt: skip

    assert used.apply(CHAT, {"messages": [{"role": "user", "content": "b"}]}, None) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "https://h/a.png", "detail": "low"}},
                {"type": "file", "file": {"file_id": "file-1"}},
            ]},
            {"role": "user", "content": "b"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": _SCHEMA},
        "verbosity": "low", "reasoning_effort": "low", "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 2,
        "seed": 1,
    }  # fmt: skip
    assert "max_completion_tokens" not in used.apply(CHAT, {"max_tokens": 5}, None)


@pytest.mark.parametrize(
    "content",
    [
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
    ],
)
def test_prompt_that_no_chat_can_have_is_refused(content: dict[str, Any]) -> None:
    prompt(**content).apply(RESPONSES, {}, None)
    with pytest.raises(InvalidRequest):
        prompt(**content).apply(CHAT, {}, None)


def test_equal_contents_have_equal_hashes() -> None:
    one = versions.complete({"instructions": "{{a}}", "parameters": {"top_p": 1, "temperature": None}})
    same = versions.complete({"variables": [{"name": "a"}], "parameters": {"top_p": 1}, "instructions": "{{a}}"})

    assert one == same
    assert one.hash != versions.complete({"instructions": "{{b}}"}).hash


def test_pins_are_looked_up_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "MAX_PINS", 2)
    asked: list[PromptReference] = []

    def find(reference: PromptReference) -> ResolvedPrompt:
        asked.append(reference)
        return prompt()

    pinned = PinnedPrompts(find, {"pmpt_1@next": "7"})
    for version in (None, "next", None, "next"):
        pinned.resolve(PromptReference(id="pmpt_1", version=version))

    assert [reference.version for reference in asked] == [None, "7"]
    assert pinned.pins == {"pmpt_1": "1", "pmpt_1@next": "1"}
    with pytest.raises(InvalidRequest, match="at most 2"):
        pinned.resolve(PromptReference(id="pmpt_2"))
