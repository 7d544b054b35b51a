r"""Regular expressions of clients: counted, compiled, and searched for in bounded time.

`regex` writes counted repeats out: `((a{9}){9}){9}` has 729 parts, and seven such levels take gigabytes. So parts are
counted in the text before it is compiled. Where the count could be wrong the pattern is refused:

    (?R)  (?1)  (?&name)  (?P>name)      a call of a group can call itself, and take 500 MB in its second
    (?x)  (?#…)                          brackets in comments are none
    (?V1)  [[a]                          sets inside of sets; `[[:alpha:]]` and `[\[a]` are accepted

A hostile pattern can take time that grows exponentially with the text. The search ends after `SECONDS`.
"""

import re
from typing import Any, Final

import regex

MAX_LENGTH: Final = 1000
MAX_CHARACTERS: Final = 100_000
SECONDS: Final = 1.0
#: Repeats of one part, those of all groups around it multiplied.
MAX_REPEATS: Final = 1024
#: Parts of a pattern with its repeats written out. Such a pattern compiles in milliseconds.
MAX_PARTS: Final = 4096
_GRAPHEME_PARTS: Final = 8  # `\X` takes as much as so many others
_TOKEN: Final = re.compile(
    r"""
      (?P<refused> \(\?\#
                 | \(\?(?:[R&0-9]|[+-][0-9]|P[>&])
                 | \(\?[a-zA-Z0-9]*(?:x|V1)[a-zA-Z0-9]*(?:-[a-zA-Z0-9]*)?[:)]
                 | \[\^?\]?(?:\\.|\[:\^?[a-zA-Z]+:\]|[^\[\]\\])*\[(?!:\^?[a-zA-Z]+:\]) )
    | (?P<flags>   \(\?[a-zA-Z0-9]*(?:-[a-zA-Z0-9]*)?\)  |  [?*+|] )
    | (?P<open>    \((?:\?(?:[:=!>|]|<[=!]))? )
    | (?P<close>   \) )
    | (?P<repeat>  \{(?P<lowest>[0-9]*)(?:,(?P<highest>[0-9]*))?\} )
    | (?P<part>    \\.  |  \[\^?\]?(?:\\.|\[:\^?[a-zA-Z]+:\]|[^\[\]\\])*\]  |  . )
    """,
    re.VERBOSE | re.DOTALL,
)


class SearchFailed(Exception):
    """A pattern cannot be searched for in a text within the limits."""


def check_pattern(pattern: str) -> None:
    """Check a pattern without writing its repeats out: a request may have a thousand.

    Raises: ValueError, where it is no regular expression or has too many parts.
    """
    _check_parts(pattern)
    _compile("".join("{0,1}" if token.lastgroup == "repeat" else token[0] for token in _TOKEN.finditer(pattern)))


def compile_pattern(pattern: str, *, ignore_case: bool = False) -> Any:
    """Return the compiled pattern, of which `regex` remembers nothing.

    Raises: ValueError, where it is no regular expression or has too many parts.
    """
    _check_parts(pattern)
    return _compile(pattern, regex.IGNORECASE if ignore_case else 0)


def _compile(pattern: str, flags: int = 0) -> Any:
    try:
        return regex.compile(pattern, flags, cache_pattern=False)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        message = str(error)[:200] or type(error).__name__
        raise ValueError(f"It is not a regular expression: {message}.") from error
    finally:
        regex.purge()  # without a cache it still keeps the text


def is_found(compiled: Any, text: str, seconds: float = SECONDS) -> bool:
    """Return whether a text has a match of a compiled pattern. Raises: SearchFailed."""
    if len(text) > MAX_CHARACTERS:
        raise SearchFailed(f"A text to search has at most {MAX_CHARACTERS} characters.")
    try:
        return compiled.search(text, timeout=min(seconds, SECONDS), concurrent=True) is not None
    except (TimeoutError, MemoryError) as error:
        raise SearchFailed(f"The pattern could not be searched for within {SECONDS:g} second.") from error


def _check_parts(pattern: str) -> None:
    """Count the parts of a pattern. Raises: ValueError, where there are too many, or they cannot be counted."""
    groups: list[list[tuple[int, int]]] = [[]]  # of each open group the parts so far, with the most repeats of one
    for token in _TOKEN.finditer(pattern):
        match token.lastgroup:
            case "refused":
                raise ValueError(
                    "A pattern has no calls of groups, no comments, no flag 'x' or 'V1', and no set in a set."
                )
            case "open":
                groups.append([])
            case "close" if len(groups) > 1:
                inner = groups.pop()
                groups[-1].append((1 + sum(parts for parts, _ in inner), max((times for _, times in inner), default=1)))
            case "part":
                groups[-1].append((_GRAPHEME_PARTS if token[0] == r"\X" else 1, 1))
            case "repeat" if groups[-1]:
                groups[-1].append(_count_repeats(groups[-1].pop(), token["lowest"], token["highest"]))
    if sum(parts for group in groups for parts, _ in group) > MAX_PARTS:
        raise ValueError(f"A pattern has at most {MAX_PARTS} parts, with its repeats written out.")


def _count_repeats(counted: tuple[int, int], lowest: str, highest: str | None) -> tuple[int, int]:
    """Return the parts and repeats of what is repeated. Raises: ValueError."""
    digits = [number for number in (lowest, highest) if number]
    counts = [int(number) if len(number) < 10 else MAX_REPEATS + 1 for number in digits]
    if counts != sorted(counts):
        raise ValueError("It is not a regular expression: a repeat has a minimum above its maximum.")
    count = max(counts, default=1)
    parts, times = counted[0] * max(count, 1), counted[1] * max(count, 1)
    if times > MAX_REPEATS:
        raise ValueError(
            f"A part of a pattern is repeated at most {MAX_REPEATS} times, all repeats around it multiplied."
        )
    return parts, times
