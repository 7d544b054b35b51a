"""Answers of every shape have an outcome, and so has whatever else a server may send."""

import json
from typing import Any

import pytest

from workers.engines.port import Answer
from workers.runtime.outcomes import error_outcomes, outcomes_of

CHAT, TEXT, RESPONSES, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"


def chat(reason: str | None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}]}


def both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"choices": first["choices"] + second["choices"]}


def response(status: str, *output: Any, why: str | None = None) -> dict[str, Any]:
    return {"status": status, "incomplete_details": {"reason": why} if why else None, "output": list(output)}


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        (CHAT, chat("stop", content="yes"), ("stop",)),
        (CHAT, chat("length", content="ye"), ("length",)),
        (CHAT, chat("stop", content=""), ("stop", "empty")),
        (CHAT, chat("stop", content=" \n"), ("stop", "empty")),
        (CHAT, chat("length", content=None, reasoning_content="hm"), ("length", "empty")),
        (CHAT, chat("tool_calls", content=None, tool_calls=[{"id": "1"}]), ("tool_calls",)),
        (CHAT, chat("stop", content=None, refusal="no"), ("stop",)),
        (CHAT, chat("stop", content=[{"type": "text", "text": "yes"}]), ("stop",)),
        (CHAT, chat(None, content="yes"), ()),
        (CHAT, both(chat("stop", content=""), chat("length", content="b")), ("length", "stop")),
        (CHAT, both(chat("stop", content=""), chat("stop", content="")), ("stop", "empty")),
        (CHAT, {"choices": []}, ("empty",)),
        (CHAT, {"choices": "odd"}, ()),
        (CHAT, {}, ()),
        ("/v1/rerank", {"results": [{"index": 0, "relevance_score": 0.5}]}, ()),
        (TEXT, {"choices": [{"text": "on", "finish_reason": "length"}]}, ("length",)),
        (TEXT, {"choices": [{"text": "", "finish_reason": "stop"}]}, ("stop", "empty")),
        (RESPONSES, response("completed", message("yes")), ("stop",)),
        (RESPONSES, response("completed", {"type": "reasoning", "content": None}), ("stop", "empty")),
        (RESPONSES, response("completed", {"type": "function_call", "name": "f"}), ("stop",)),
        (RESPONSES, response("incomplete", message("y"), why="max_output_tokens"), ("length",)),
        (RESPONSES, response("incomplete", why="content_filter"), ("content_filter", "empty")),
        (EMBED, {"data": [{"embedding": [0.1]}]}, ()),
    ],
)  # fmt: skip
def test_an_answer_counts_under_its_finish_reasons(url: str, body: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert outcomes_of(url, Answer(200, json.dumps(body).encode())) == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "m", "code": "context_length_exceeded"}}, "error:context_length_exceeded"),
        (400, {"error": {"message": "m", "code": 400}}, "error:http_400"),
        (400, {"error": {"message": "m", "code": 'no "label"\n'}}, "error:http_400"),
        (429, {"error": {"message": "m", "code": "x" * 64}}, "error:http_429"),
        (500, {"error": "what"}, "error:http_500"),
        (502, [], "error:http_502"),
    ],
)
def test_a_refusal_counts_under_its_code_or_its_status(status: int, body: Any, expected: str) -> None:
    assert outcomes_of(CHAT, Answer(status, json.dumps(body).encode())) == (expected,)


def test_a_line_without_an_answer_counts_under_its_code() -> None:
    assert error_outcomes("worker_crashed") == ("error:worker_crashed",)
