"""Estimate the tokens of a request before a model has read it: for rate limits, budgets and answers cut short."""

from collections.abc import Mapping
from typing import Any, Final

from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES

#: The fields that bound the tokens of an answer, and those that ask for several answers.
LIMITS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
CHOICES: Final = ("n", "best_of")
#: The tokens of an answer whose request names no bound.
DEFAULT_OUTPUT_TOKENS: Final = 1024
BYTES_PER_TOKEN: Final = 4
_MAX_OUTPUT_TOKENS: Final = 1 << 20
_MAX_CHOICES: Final = 2048
_MAX_PROMPTS: Final = 2048
_GENERATING: Final = frozenset({CHAT, COMPLETIONS, RESPONSES})


def input_tokens(size: int) -> int:
    """Return the tokens of a request of `size` bytes."""
    return -(-size // BYTES_PER_TOKEN)


def output_tokens(endpoint: str, body: Mapping[str, Any]) -> int:
    """Return the most tokens that a request may be answered with. Of several bounds the largest counts."""
    if endpoint not in _GENERATING:
        return 0
    bound = max(_number(body.get(name), _MAX_OUTPUT_TOKENS) for name in LIMITS) or DEFAULT_OUTPUT_TOKENS
    choices = max(1, *(_number(body.get(name), _MAX_CHOICES) for name in CHOICES))
    prompts = min(count_inputs(body.get("prompt")), _MAX_PROMPTS) if endpoint == COMPLETIONS else 1
    return bound * choices * prompts


def count_inputs(value: object) -> int:
    """Return the number of texts in a field: a list of them has several, a list of tokens is one."""
    return len(value) if isinstance(value, list) and value and not isinstance(value[0], int) else 1


def _number(value: Any, limit: int) -> int:
    """Return a number as engines read it, `5`, `5.0` or `"5"`, at most `limit`; 0 for any other value."""
    try:
        return int(min(max(0.0, float(value)), limit))
    except OverflowError:  # an integer of hundreds of digits
        return limit
    except (TypeError, ValueError):
        return 0
