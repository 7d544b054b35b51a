"""Find examples of what became of a batch's lines, in its results: of answers that were cut off, and of failures."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from jobs.batches.joining import Row, answer_of, error_of

EXAMPLES: Final = 3
EMPTY: Final = "empty"

_WIDTH = 100  # characters of a message that are shown
_RESPONSES = {"completed": "stop", "max_output_tokens": "length"}
#: Statuses below 500 with which the same request may succeed later.
_TRANSIENT: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Error messages of lines that failed with the same code; `is_permanent`: the same request fails again."""

    examples: list[str]
    is_permanent: bool


def answer_examples(lines: Iterable[bytes], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the beginnings of answers by finish reason and EMPTY. `counts` counts the lines of each."""

    def texts_of(result: Row) -> Iterator[tuple[str, str]]:
        for word in outcomes_of(result):
            answer = answer_of("", result["response"]["body"])
            text = short(answer) if isinstance(answer, str) and word != EMPTY else ""
            yield word, f"{short(result['custom_id'])}: {text}" if text else short(result["custom_id"])

    return _collect(lines, counts, texts_of)


def failure_examples(lines: Iterable[bytes], counts: Mapping[str, int]) -> dict[str, Failure]:
    """Return the failures by code."""
    permanent: set[str] = set()

    def texts_of(result: Row) -> Iterator[tuple[str, str]]:
        code, message = error_of(result)
        if code:
            if _is_permanent(result):
                permanent.add(code)
            yield code, f"{short(result['custom_id'])}: {short(message)}"

    examples = _collect(lines, counts, texts_of)
    return {code: Failure(texts, code in permanent) for code, texts in examples.items()}


def _is_permanent(result: Row) -> bool:
    """Return whether the request itself was refused, and not its time."""
    status = (result["response"] or {}).get("status_code", HTTPStatus.INTERNAL_SERVER_ERROR)
    return bool(status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _TRANSIENT)


def outcomes_of(result: Row) -> set[str]:
    """Return the finish reasons of one line, and EMPTY for an empty answer, as the workers count them."""
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
    """Return `message` as one line of at most 100 printable characters."""
    text = " ".join("".join(character if character.isprintable() else " " for character in message or "").split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _collect(
    lines: Iterable[bytes], counts: Mapping[str, int], texts_of: Callable[[Row], Iterable[tuple[str, str]]]
) -> dict[str, list[str]]:
    """Return at most EXAMPLES texts for each name of `counts`; read no more lines than that takes."""
    examples: dict[str, list[str]] = {name: [] for name in counts}
    for line in lines:
        for name, text in _texts(line, texts_of):
            if len(examples.get(name, range(EXAMPLES))) < EXAMPLES:
                examples[name].append(text)
        if all(len(some) >= min(EXAMPLES, counts[name]) for name, some in examples.items()):
            break
    return examples


def _texts(line: bytes, texts_of: Callable[[Row], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Return the texts of one line; none for an answer whose shape is unknown, which a server may have sent."""
    try:
        return list(texts_of(json.loads(line)))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return []


def _says_something(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    if message is None:
        return _filled(choice.get("text"))
    fields = ("tool_calls", "function_call", "refusal")
    return _filled(message.get("content")) or any(message.get(name) for name in fields)


def _holds_something(output: Mapping[str, Any]) -> bool:
    if output.get("type") == "message":
        return any(_filled(part.get("text")) or part.get("refusal") for part in output.get("content") or ())
    return output.get("type") != "reasoning"


def _filled(text: Any) -> bool:
    return bool(text.strip()) if isinstance(text, str) else bool(text)
