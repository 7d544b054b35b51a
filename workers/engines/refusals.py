"""Translate the engines' errors for prompts that are too long into OpenAI's."""

import re
from typing import Any, Final

import msgspec

from jobs.inference.context_options import PROMPT
from workers.engines.port import Answer, refusal

CODE: Final = "context_length_exceeded"
_STATUSES: Final = frozenset({400, 413, 422})
#: vLLM and OpenAI; vLLM's responses; SGLang; llama.cpp; TGI; TensorRT-LLM.
_WORDS: Final = re.compile(
    r"maximum context length|exceeds the max_model_len|model's context length|available context size"
    r"|exceeds the maximum allowed length|`inputs` (?:tokens \+ `max_new_tokens`|must have less than)"
    r"|prompt length \(\d+\) exceeds",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(
    r"(?:maximum context length (?:is|of)|max_model_len|(?:model's context|maximum \w+) length \(|must be <="
    r"|less than) ?(\d+)",
    re.IGNORECASE,
)


def too_long(url: str, limit: int | None, tokens: int, least: str) -> Answer:
    maximum = f"This model's maximum context length is {limit} tokens" if limit else "This model's context is shorter"
    return refusal(400, f"{maximum}, and the prompt has {tokens}. {least}", param=PROMPT[url], code=CODE)


def is_too_long(answer: Answer) -> bool:
    if answer.status not in _STATUSES:
        return False
    error = _error(answer)
    if str(error.get("param")).startswith("max_"):
        return False  # not the prompt but the answer would be too long
    by_name = error.get("code") == CODE or error.get("type") == "exceed_context_size_error"
    return by_name or _WORDS.search(str(error.get("message"))) is not None


def limit_in(answer: Answer) -> int | None:
    """Return the context length that a refusal names; None where it names none."""
    error = _error(answer)
    named = error.get("n_ctx")
    if isinstance(named, int):
        return named
    match = _LIMIT.search(str(error.get("message")))
    return int(match.group(1)) if match else None


def translate_refusal(url: str, answer: Answer) -> Answer:
    """Return the engine's message under OpenAI's code, which clients look for."""
    if not is_too_long(answer):
        return answer
    error = _error(answer)
    if error.get("code") == CODE:
        return answer
    message = str(error.get("message"))
    return Answer(400, refusal(400, message, param=PROMPT[url], code=CODE).body, answer.usage)


def _error(answer: Answer) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(answer.body)
    except msgspec.MsgspecError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}
