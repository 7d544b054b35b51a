"""Samples as clients see them, in the types of OpenAI's output items.

    of an item    what the evaluated model was asked and answered, or the answer that came with the item
    of a judge    what it was asked about the sample and answered: the `sample` of a result, beside its `result`

Each content is a text: a part of a message that is not one appears as its type, such as `[image_url]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from jobs.evals.graders.base import ModelAnswer
from jobs.evals.samples import text_of
from workers.engines.wire import usage_of

#: Characters of what all judges of an item were asked and answered: each of up to 50 criteria may repeat the item.
MAX_JUDGED: Final = 131_072
#: The names of the limit of an answer's tokens: of chats, of older chats, and of responses.
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
#: What OpenAI's API samples with where a request names nothing else.
_DEFAULTS: Final = {"temperature": 1.0, "top_p": 1.0}


@dataclass(slots=True)
class Allowance:
    """The characters that may still be shown of what the judges of an item were asked and answered."""

    left: int = MAX_JUDGED

    def cut(self, text: str) -> str:
        """Return the text, or its beginning and `…` where it is longer than what is left."""
        beginning = text[: self.left]
        self.left -= len(beginning)
        return text if len(beginning) == len(text) else f"{beginning}…"


def of_item(
    sample: Mapping[str, Any] | None,
    messages: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    model: str | None = None,
    context_length: int | None = None,
    error: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the sample of an item; where there is none, the error in place of an output.

    `context_length` is that of the evaluated `model`, the limit of an answer for which the request names none.
    """
    choice = _first_choice(sample or {})
    message = {**_fields(choice.get("message")), "content": (sample or {}).get("output_text")}
    fields = _show(messages, [message] if sample else [], request, answer)
    limit = fields["max_completion_tokens"]
    return {
        **fields,
        "finish_reason": _text_or_none(choice.get("finish_reason")),
        "model": fields["model"] or model,
        "max_completion_tokens": context_length if limit is None and request else limit,
        "error": error if sample is None else None,
    }


def of_judge(request: Mapping[str, Any], answer: ModelAnswer, allowance: Allowance) -> dict[str, Any]:
    """Return the sample of a judge; where it gave no answer, an error in place of an output."""
    choice, is_answered = _first_choice(answer.body), answer.status == 200
    message = _fields(choice.get("message"))
    message = {**message, "content": message.get("content") or message.get("refusal")}
    return {
        **_show(request["messages"], [message] if is_answered else [], request, answer.body, allowance.cut),
        "finish_reason": _text_or_none(choice.get("finish_reason")),
        "error": None if is_answered else error_of(answer),
    }


def error_of(answer: ModelAnswer) -> dict[str, str]:
    """Return the error that a model's server gave in place of an answer."""
    error = _fields(answer.body.get("error"))
    message = error.get("message") or f"The model's server answered {answer.status}."
    return {"code": str(error.get("code") or "sample_error"), "message": str(message)}


def _show(
    messages: Sequence[Mapping[str, Any]],
    output: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    cut: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return what the samples of items and of judges have in common."""
    defaults = _DEFAULTS if request else {}
    return {
        "input": [_message(message, cut) for message in messages],
        "output": [_message(message, cut) for message in output],
        "model": _text_or_none(answer.get("model")) or _text_or_none(request.get("model")),
        "usage": _usage(answer.get("usage")),
        **{
            name: _first(request.get(name), answer.get(name), defaults.get(name))
            for name in ("temperature", "top_p", "seed")
        },
        "max_completion_tokens": _first(*map(request.get, _LIMITS), *map(answer.get, _LIMITS)),
    }


def _message(message: Mapping[str, Any], cut: Callable[[str], str]) -> dict[str, Any]:
    """Return a message, or another item of the input of a response, whose type stands for its content."""
    kind = message.get("type")
    role = message.get("role") or ("tool" if str(kind).endswith("_output") else "assistant")
    content = cut(text_of(message.get("content", [{"type": kind}])))
    calls = {name: message[name] for name in ("tool_calls", "tool_call_id") if message.get(name)}
    return {"role": role, "content": content, **calls}


def _first_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    return _fields(choices[0]) if isinstance(choices, list) and choices else {}


def _fields(value: Any) -> dict[str, Any]:
    """Return an object; of anything else in its place an empty one, for a client or another server wrote it."""
    return value if isinstance(value, dict) else {}


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _first(*values: Any) -> Any:
    """Return the first value that is a number, or None."""
    return next((value for value in values if type(value) in (int, float)), None)


def _usage(usage: Any) -> dict[str, int]:
    """Return the tokens of an answer in the fields of output items."""
    tokens = usage_of(msgspec.json.encode({"usage": usage}))
    return {
        "prompt_tokens": tokens.input_tokens,
        "completion_tokens": tokens.output_tokens,
        "total_tokens": tokens.total_tokens,
        "cached_tokens": tokens.cached_tokens,
    }
