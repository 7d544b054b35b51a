"""Reduce the result of a request to outcomes: words that can be counted.

    answer 2xx     its finish reasons (stop, length, tool_calls, content_filter …), and `empty` where it has no text
    answer 4xx …   error:CODE as the engine names it, else error:http_STATUS
    no answer      error:CODE of the line

A line with several choices counts once under each of their reasons. An answer of an unknown shape has no outcome, and
is passed on all the same.
"""

import re
from typing import Any, Final

import msgspec

from jobs.requests.endpoints import EMBEDDINGS, RERANK
from workers.engines.port import Answer

EMPTY: Final = "empty"
ERROR: Final = "error:"

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")  # the words become labels of metrics
_RESPONSES: Final = {"completed": "stop", "max_output_tokens": "length"}


class _Message(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: _Message | None = None
    text: Any = None


class _Part(msgspec.Struct):
    text: Any = None
    refusal: Any = None


class _Output(msgspec.Struct):
    type: str | None = None
    content: list[_Part] | None = None


class _Why(msgspec.Struct):
    reason: str | None = None


class _Answer(msgspec.Struct):
    """The fields of a chat completion, a completion or a response that give its outcomes."""

    choices: list[_Choice] | None = None
    status: str | None = None
    incomplete_details: _Why | None = None
    output: list[_Output] | None = None


class _Error(msgspec.Struct):
    code: Any = None


class _Refusal(msgspec.Struct):
    error: _Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode
_refusal = msgspec.json.Decoder(_Refusal).decode


def outcomes_of(url: str, answer: Answer) -> tuple[str, ...]:
    """Return the outcomes of an answer to a request to `url`."""
    if not 200 <= answer.status < 300:
        return (_error(answer),)
    if url in (EMBEDDINGS, RERANK):
        return ()
    try:
        fields = _answer(answer.body)
    except msgspec.MsgspecError:
        return ()
    if fields.choices is not None:
        outcomes = {word(choice.finish_reason) for choice in fields.choices}
        empty = not any(map(_says_something, fields.choices))
    elif fields.status is not None:
        why = fields.incomplete_details.reason if fields.incomplete_details else None
        outcomes = {word(_RESPONSES.get(why or fields.status, why or fields.status))}
        empty = not any(map(_holds_something, fields.output or ()))
    else:
        return ()
    return (*sorted(outcomes - {""}), *([EMPTY] if empty else []))


def error_outcomes(code: str) -> tuple[str, ...]:
    """Return the outcomes of a line without an answer."""
    return (ERROR + code,)


def _error(answer: Answer) -> str:
    try:
        refusal = _refusal(answer.body).error
    except msgspec.MsgspecError:
        refusal = None
    return ERROR + (word(refusal.code if refusal else None) or f"http_{answer.status}")


def word(value: Any) -> str:
    """Return a name that may be a label, or stand in a log or the audit; empty for any other value."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def _says_something(choice: _Choice) -> bool:
    message = choice.message
    if message is None:
        return _has_content(choice.text)
    return bool(_has_content(message.content) or message.tool_calls or message.function_call or message.refusal)


def _holds_something(output: _Output) -> bool:
    if output.type == "reasoning":
        return False
    if output.type == "message":
        return any(_has_content(part.text) or bool(part.refusal) for part in output.content or ())
    return True  # a call of a tool


def _has_content(text: Any) -> bool:
    return bool(text.strip()) if isinstance(text, str) else bool(text)
