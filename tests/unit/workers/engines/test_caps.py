"""Requests beyond the limits are refused before an engine sees them."""

from typing import Any

import msgspec
import pytest

from jobs.requests.answer_schemas import MAX_SCHEMA_BYTES
from workers.engines.caps import MAX_ANSWERS, MAX_ITEMS, MAX_PATTERN_CHARACTERS, objection

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def schema(inner: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": inner}}}


def tool(inner: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": inner}}]}


def says(kind: str, value: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: value}]}]}


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        inner = {"type": "object", "properties": {"a": inner}}
    return inner


def refused(url: str, body: dict[str, Any]) -> tuple[int, str | None]:
    answer = objection(url, body)
    assert answer is not None
    return answer.status, msgspec.json.decode(answer.body)["error"]["param"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 129}, "n"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 129}, "best_of"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        *[({"n": many}, "n") for many in ("10000", 10000.0, 1.0, "many", [2], -1, 10**5000)],
        *[({name: "5000"}, name) for name in ("top_logprobs", "logprobs", "best_of")],
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (schema({"enum": ["x" * MAX_SCHEMA_BYTES]}), "response_format"),
        (schema({"type": "string", "maxLength": MAX_ITEMS + 1}), "response_format"),
        (schema({"type": "array", "minItems": 1e9}), "response_format"),
        (schema({"type": "array", "minItems": "1000000000"}), "response_format"),
        (schema({"type": "array", "minItems": 10**400}), "response_format"),
        (schema(nested(16)), "response_format"),
        (schema({"type": "string", "pattern": "a" * (MAX_PATTERN_CHARACTERS + 1)}), "response_format"),
        (schema({"type": "string", "pattern": "(a{64}){64}"}), "response_format"),
        (schema({"type": "object", "patternProperties": {"(a{64}){64}": {}}}), "response_format"),
        (schema({"type": "string", "pattern": "a{" + "9" * 5000 + "}"}), "response_format"),
        (tool({"type": "object", "properties": {"a": {"type": "string", "pattern": "x{2000,}"}}}), "tools"),
        (tool({"type": "string", "pattern": "x{,2000}"}), "tools"),
        ({"structured_outputs": {"regex": "(a{64}){64}"}}, "structured_outputs"),
        ({"structured_outputs": {"json": '{"type": "string", "pattern": "(a{64}){64}"}'}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": 'root ::= "a"{64}\nb ::= ("b"{64}){64}'}}, "structured_outputs"),
        ({"guided_json": nested(16)}, "guided_json"),
        ({"guided_regex": "a{9999}"}, "guided_regex"),
        ({"guided_choice": ["x" * MAX_SCHEMA_BYTES]}, "guided_choice"),
        ({"json_schema": '{"minLength": 100000}'}, "json_schema"),
        ({"grammar": "x" * MAX_SCHEMA_BYTES}, "grammar"),
        (says("image_url", {"url": "http://169.254.169.254/latest"}), "messages"),
        (says("image_url", "https://example.com/a.png"), "messages"),
        (says("video_url", {"url": "file:///etc/passwd"}), "messages"),
        (says("audio_url", {"url": "//example.com/a.wav"}), "messages"),
        (says("image_url", [{"url": "http://example.com/a.png"}]), "messages"),
        (says("image_url", {"url": {"url": "http://example.com/a.png"}}), "messages"),
        (says("input_audio", {"data": "http://example.com/a.wav", "format": "wav"}), "messages"),
        (says("file", {"file_data": "file:///etc/passwd"}), "messages"),
        (says("image_embeds", "AAAA"), "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "AAAA"}]}]}, "messages"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"documents": [{"image_url": "http://example.com/a.png"}]}, "documents"),
    ],
)
def test_request_beyond_limits_is_refused(body: dict[str, Any], param: str) -> None:
    assert refused(CHAT, body) == (400, param)


FOUND = {"type": "input_image", "image_url": "http://169.254.169.254/x"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [FOUND]}]}, "input"),
        ({"input": [{"type": "computer_call_output", "call_id": "c", "output": FOUND}]}, "input"),
        ({"prompt": {"id": "p", "variables": {"picture": FOUND}}}, "prompt"),
        ({"previous_input_messages": [{"author": {"content": [FOUND]}}]}, "previous_input_messages"),
        ({"text": {"format": {"type": "json_schema", "schema": {"pattern": "a{9999}"}}}}, "text"),
        ({"input": [{"type": "input_image", "image_url": "http://example.com/a.png"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://10.0.0.1/"}]}]}, "input"),
    ],
)
def test_so_it_is_in_responses(body: dict[str, Any], param: str) -> None:
    assert refused(RESPONSES, body) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 128},
        {"logprobs": True, "top_logprobs": 20},
        {"n": None, "logprobs": False, "top_logprobs": 0},
        schema(nested(10)),
        schema({"properties": {"maxLength": {"type": "string"}, "pattern": {"type": "string"}, "n": {"default": "x"}}}),
        schema({"patternProperties": {"^x-[a-z]{1,8}$": {"type": "string"}}}),
        schema({"properties": {"image_url": {"type": "string", "default": "https://example.com/a.png"}}}),
        tool({"properties": {"a": {"examples": [{"image_url": "https://example.com/a.png"}]}}}),
        {"metadata": {"image_url": "https://example.com/a.png"}},
        {"structured_outputs": {"json": "odd", "regex": "[a-z]{1,8}", "grammar": 'root ::= "a"{64}\nb ::= "b"{64}'}},
        {"guided_json": "[" * 5000},
        says("input_audio", {"data": "UklGRg==", "format": "wav"}),
        says("file", {"file_data": "data:application/pdf;base64,JVBERi0="}),
        says("text", "see https://example.com/a.png"),
        schema({"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$", "maxLength": 100}),
        schema("odd"),
        {"response_format": "odd", "tools": 3},
        says("image_url", {"url": PIXEL}),
        says("image_url", {"url": None}),
        {"messages": "odd"},
        {"messages": ["odd", {"content": ["odd"]}]},
    ],
)
def test_the_rest_is_for_the_engine_to_judge(body: dict[str, Any]) -> None:
    assert objection(CHAT, body) is None


def test_a_schema_as_deep_as_a_batch_line_may_be_is_no_trouble() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]

    assert refused(CHAT, schema(deep)) == (400, "response_format")


def test_deeply_nested_media_url_is_refused() -> None:
    deep: Any = {"image_url": "http://example.com/a.png"}
    for _ in range(5000):
        deep = [deep]

    assert refused(CHAT, {"messages": deep}) == (400, "messages")


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/rerank", "/v1/completions"])
def test_media_are_found_at_every_url(url: str) -> None:
    assert refused(url, {"documents": [{"content": [FOUND]}], "input": "x"}) == (400, "documents")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, None),
        ({"logprobs": 0, "max_tokens": 16, "n": 1, "prompt": [[1, 2]] * 16}, None),
        ({"logprobs": False, "prompt": "x" * (1 << 17)}, None),
        ({"echo": "true"}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 17}, "max_tokens"),
        ({"max_tokens": "17"}, "max_tokens"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": ["x" * (1 << 16)] * 3}, "prompt"),
        ({"prompt": [7] * ((1 << 17) + 1)}, "prompt"),
    ],
)
def test_an_echo_with_log_probs_is_bounded(fields: dict[str, Any], param: str | None) -> None:
    asked = {"prompt": "x", "echo": True, "logprobs": 1, **fields}

    assert (refused(COMPLETIONS, asked) if param else objection(COMPLETIONS, asked)) == (param and (400, param))


@pytest.mark.parametrize("most", [0, 20, False])
def test_a_chat_has_no_echo(most: int) -> None:
    assert refused(CHAT, {"messages": [], "echo": True, "top_logprobs": most}) == (400, "echo")
    assert refused(CHAT, {"messages": [], "echo": True}) == (400, "echo"), "vLLM's default is 0, which asks for them"


@pytest.mark.parametrize("echo", [False, None, 0])
def test_an_echo_without_log_probs_may_be(echo: Any) -> None:
    assert objection(COMPLETIONS, {"prompt": "x", "echo": True}) is None
    assert objection(COMPLETIONS, {"prompt": "x", "echo": True, "logprobs": None}) is None
    assert objection(COMPLETIONS, {"prompt": "x", "echo": echo, "logprobs": 20}) is None
    assert objection(CHAT, {"messages": [], "echo": echo, "logprobs": True, "top_logprobs": 20}) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["x"] * (MAX_ANSWERS + 1)}, "prompt"),
        ({"prompt": [[1, 2]] * (MAX_ANSWERS + 1)}, "prompt"),
        ({"prompt": [1, *["x"] * MAX_ANSWERS]}, "prompt"),
        ({"prompt": ["x"] * 17, "n": 128}, "n"),
        ({"prompt": ["x"] * 17, "best_of": 128}, "n"),
        ({"prompt": ["x"] * MAX_ANSWERS, "n": 2, "best_of": None}, "n"),
    ],
)
def test_a_completion_has_only_so_many_answers(body: dict[str, Any], param: str) -> None:
    assert refused(COMPLETIONS, body) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "n": 128},
        {"prompt": ["x"] * 16, "n": 128},
        {"prompt": ["x"] * MAX_ANSWERS, "n": None},
        {"prompt": [7] * (MAX_ANSWERS * 8), "n": 128},
        {"prompt": []},
        {"prompt": {"odd": 1}, "n": 2},
    ],
)
def test_completion_within_answer_limit_is_accepted(body: dict[str, Any]) -> None:
    assert objection(COMPLETIONS, body) is None
    assert objection(COMPLETIONS, {"input": "x", "prompt": {"id": "p"}}) is None


@pytest.mark.parametrize("kind", ["web_search", "code_interpreter", "mcp", None, "x" * 1000])
def test_the_refusal_of_a_tool_names_those_that_are_there(kind: str | None) -> None:
    answer = objection(RESPONSES, {"model": "m", "tools": [{"type": "function", "name": "f"}, {"type": kind}]})

    assert answer is not None
    error = msgspec.json.decode(answer.body)["error"]
    assert (answer.status, error["param"], error["code"]) == (400, "tools", "unsupported_tool")
    assert error["message"] == (
        f"The tool '{str(kind)[:64]}' is not supported by Nightmill. Supported are: function, file_search."
    )


@pytest.mark.parametrize(
    ("url", "name", "roles"),
    [
        (CHAT, "messages", ("user", "assistant", "system", "developer", "tool", "function")),
        (RESPONSES, "input", ("user", "assistant", "system", "developer")),
    ],
)
def test_a_role_that_does_not_exist_is_refused(url: str, name: str, roles: tuple[str, ...]) -> None:
    known: list[Any] = [{"role": role, "content": "x"} for role in roles]

    assert objection(url, {name: [*known, {"type": "function_call"}, {"role": None}, "odd"]}) is None
    assert objection(url, {name: "wizard"}) is None
    refused = objection(url, {name: [*known, {"role": "wizard", "content": "x"}]})

    assert refused is not None
    error = msgspec.json.decode(refused.body)["error"]
    assert (refused.status, error["param"], error["code"]) == (400, f"{name}[{len(known)}].role", "invalid_value")
    assert error["message"].endswith(f"Supported roles are: {', '.join(roles)}.")
