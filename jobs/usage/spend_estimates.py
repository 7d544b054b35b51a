"""Estimate the tokens of a request before a model has read it."""

from collections.abc import Mapping
from typing import Any, Final

from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES

#: The fields that bound the tokens of an answer, and those that ask for several answers.
LIMITS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
CHOICES: Final = ("n", "best_of")
#: The tokens of an answer whose request names no bound.
DEFAULT_OUTPUT_TOKENS: Final = 1024
_MAX_OUTPUT_TOKENS: Final = 1 << 20
_MAX_CHOICES: Final = 128
_BYTES_PER_TOKEN: Final = 4
_GENERATING: Final = frozenset({CHAT, COMPLETIONS, RESPONSES})


def input_tokens(size: int) -> int:
    """Return the tokens of a request of `size` bytes."""
    return -(-size // _BYTES_PER_TOKEN)


def output_tokens(endpoint: str, body: Mapping[str, Any]) -> int:
    """Return the most tokens that a request may be answered with. Values that no engine takes count as missing."""
    if endpoint not in _GENERATING:
        return 0
    bound = next(filter(None, (_count(body.get(name), _MAX_OUTPUT_TOKENS) for name in LIMITS)), DEFAULT_OUTPUT_TOKENS)
    return bound * max(1, *(_count(body.get(name), _MAX_CHOICES) for name in CHOICES))


def _count(value: Any, limit: int) -> int:
    """Return a number of things, at most `limit`; 0 for any other value."""
    return min(value, limit) if type(value) is int and value > 0 else 0
