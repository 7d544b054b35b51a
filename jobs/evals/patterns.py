"""Regular expressions of clients: checked, and searched for in bounded time.

A hostile pattern can take time that grows exponentially with the text. The search ends after `SECONDS`.
"""

from typing import Final

import regex

MAX_LENGTH: Final = 1000
MAX_CHARACTERS: Final = 100_000
SECONDS: Final = 1.0


class SearchFailed(Exception):
    """A pattern cannot be searched for in a text within the limits."""


def check(pattern: str) -> None:
    """Check that a pattern is a regular expression. Raises: ValueError."""
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)[:200] or type(error).__name__) from error


def is_found(pattern: str, text: str, *, ignore_case: bool) -> bool:
    """Return whether a text has a match of the pattern. Raises: SearchFailed."""
    if len(text) > MAX_CHARACTERS:
        raise SearchFailed(f"A text to search has at most {MAX_CHARACTERS} characters.")
    flags = regex.IGNORECASE if ignore_case else 0
    try:
        return regex.search(pattern, text, flags=flags, timeout=SECONDS, concurrent=True) is not None
    except (TimeoutError, MemoryError) as error:
        raise SearchFailed(f"The pattern could not be searched for within {SECONDS:g} second.") from error
