"""Where a text may be cut well: between paragraphs, lines, sentences or words. A border is a place, not a character.

All look for the last border in text[low:high + 1], and at no character before `low`, so that a window costs what it
is long.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final

#: A full stop (also in Arabic, Urdu and Hindi) and what closes after it, before white space and no small letter
#: (`e.g. this`). Those of Chinese and Japanese need no space.
_SENTENCE: Final = re.compile(
    r"[.!?…؟\u06d4\u0964][\"'”\u2019)\]»]*(?=\s+(?:[^\sa-z]|\Z))|[。\uff01\uff1f\uff61][\"'”\u2019」』\uff09]*"
)
_AFTER: Final = 16  # characters behind the window that tell whether a sentence ends
_SPACE: Final = re.compile(r"\s")
_LINE: Final = re.compile(r"\n")
_WORD: Final = re.compile(r"\S")
_JOINER: Final = "\u200d"
_CLUSTER: Final = 16  # characters: longer heaps of marks may be cut

Border = Callable[[str, int, int], int | None]


def paragraph(text: str, low: int, high: int) -> int | None:
    return _last("\n\n", text, low, high)


def line(text: str, low: int, high: int) -> int | None:
    return _last("\n", text, low, high)


def sentence(text: str, low: int, high: int) -> int | None:
    ends = (found.end() for found in _SENTENCE.finditer(text, low, high + _AFTER))
    return max((end for end in ends if end <= high), default=None)


def ends(text: str, start: int, end: int, *, of_lines: bool) -> Iterator[int]:
    """After each sentence of text[start:end], or each line, and at its end."""
    marks = _LINE if of_lines else _SENTENCE
    for found in marks.finditer(text, start, min(end + _AFTER, len(text))):
        if found.end() >= end:
            break
        yield found.end()
    yield end


def word(text: str, low: int, high: int) -> int | None:
    """Before the last white space."""
    parts = text[low : high + 1].rsplit(None, 1)
    if not parts or text[high : high + 1].isspace():
        return high
    at = high + 1 - len(parts[-1]) - 1
    return at if at >= low else None


def character(text: str, low: int, high: int) -> int:
    """Not inside of what is seen as one character, as far as combining marks and joiners tell."""
    for at in range(high, max(low, high - _CLUSTER), -1):
        if not _joins(text, at):
            return at
    return high


def is_word_start(text: str, at: int) -> bool:
    return at in (0, len(text)) or text[at - 1].isspace() or text[at].isspace()


def next_word(text: str, low: int, high: int) -> int | None:
    """After the first white space."""
    found = _SPACE.search(text, low, high)
    return found.end() if found else None


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without white space around; empty (start == end) when there is nothing else."""
    found = _WORD.search(text, start, end)
    if found is None:
        return end, end
    while text[end - 1].isspace():
        end -= 1
    return found.start(), end


def _last(mark: str, text: str, low: int, high: int) -> int | None:
    at = text.rfind(mark, low, high + len(mark))
    return at if at >= 0 else None


def _joins(text: str, at: int) -> bool:
    """Whether the characters on both sides belong together."""
    if not 0 < at < len(text):
        return False
    following = text[at]
    return (
        _JOINER in (text[at - 1], following)
        or unicodedata.category(following) in ("Mn", "Me", "Mc")
        or "\U0001f3fb" <= following <= "\U0001f3ff"  # skin tones
    )
