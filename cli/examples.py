"""A few lines of each outcome of a job, found in its results as they come; what is enough ends the reading."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cli.joining import Row, answer_of, error_of

EXAMPLES = 3
EMPTY = "empty"

_WIDTH = 100  # characters of a message that are shown
_RESPONSES = {"completed": "stop", "max_output_tokens": "length"}


def answered(lines: Iterable[bytes], wanted: Mapping[str, int]) -> dict[str, list[str]]:
    """How answers begin, by finish reason and EMPTY. `wanted`: how many lines of each there are."""

    def told(result: Row) -> Iterator[tuple[str, str]]:
        for word in outcomes_of(result):
            said = answer_of("", result["response"]["body"])
            text = short(said) if isinstance(said, str) and word != EMPTY else ""
            yield word, f"{short(result['custom_id'])}: {text}" if text else short(result["custom_id"])

    return _found(lines, wanted, told)


def failed(lines: Iterable[bytes], wanted: Mapping[str, int]) -> dict[str, list[str]]:
    """What was said of lines that failed, by code."""

    def told(result: Row) -> Iterator[tuple[str, str]]:
        code, message = error_of(result)
        if code:
            yield code, f"{result['custom_id']}: {short(message)}"

    return _found(lines, wanted, told)


def outcomes_of(result: Row) -> set[str]:
    """The finish reasons of one line, and EMPTY where it says nothing, as the workers count them."""
    body = (result["response"] or {}).get("body")
    if error_of(result)[0] or not isinstance(body, dict):
        return set()
    if isinstance(body.get("choices"), list):
        words = {choice.get("finish_reason") for choice in body["choices"]}
        empty = not any(map(_says_something, body["choices"]))
    elif body.get("status"):
        why = (body.get("incomplete_details") or {}).get("reason") or body["status"]
        words = {_RESPONSES.get(why, why)}
        empty = not any(map(_holds_something, body.get("output") or ()))
    else:
        return set()
    return words - {None} | ({EMPTY} if empty else set())


def short(message: str | None) -> str:
    """One line of at most 100 characters, all of which show: a terminal obeys others."""
    text = " ".join("".join(one if one.isprintable() else " " for one in message or "").split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _found(
    lines: Iterable[bytes], wanted: Mapping[str, int], told: Callable[[Row], Iterable[tuple[str, str]]]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for line in lines:
        for name, text in told(json.loads(line)):
            if len(found.get(name, range(EXAMPLES))) < EXAMPLES:
                found[name].append(text)
        if all(len(some) >= min(EXAMPLES, wanted[name]) for name, some in found.items()):
            break
    return found


def _says_something(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    if message is None:
        return _filled(choice.get("text"))
    said = ("tool_calls", "function_call", "refusal")
    return _filled(message.get("content")) or any(message.get(name) for name in said)


def _holds_something(output: Mapping[str, Any]) -> bool:
    if output.get("type") == "message":
        return any(_filled(part.get("text")) or part.get("refusal") for part in output.get("content") or ())
    return output.get("type") != "reasoning"


def _filled(text: Any) -> bool:
    return bool(text.strip()) if isinstance(text, str) else bool(text)
