"""Which of the excerpts an answer rests on, as `file_citation` annotations of its text.

"It purrs [1]."      the model names them: a citation where each marker stands, unless the excerpt has no word of what
                     was said there
"It purrs."          it names none: the excerpt that has most of the answer's words, if it has a third of them

Beside OpenAI's fields a citation has `chunk`, `start` and `end`: which chunk of the file, and which characters of the
file's content the excerpt is; and `support`, the share of the words said there that stand in it.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from jobs.searches import Found

_MARKER: Final = re.compile(r"\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]")
_ENDS: Final = re.compile(r"(?<=[.?!:])\s+|\n+")
_WORD: Final = re.compile(r"\w{4,}")
_ANY_WORD: Final = re.compile(r"\w+")
_SHARE: Final = 1 / 3
_ENOUGH: Final = 3  # words: of fewer none has to stand in the excerpt


def citations(text: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    """OpenAI's annotations; `index` is where in the text the citation stands, in characters."""
    named = [
        (found[int(number) - 1], marker.start())
        for marker in _MARKER.finditer(text)
        for number in marker.group(1).split(",")
        if 1 <= int(number) <= len(found)
    ]
    return [one for one in map(_checked, named, [text] * len(named)) if one] if named else _by_words(text, found)


def support(text: str, found: Sequence[Found]) -> float:
    """The share of a text's words that stand in the excerpts, 0 of one without words."""
    return _share(text, frozenset().union(*(_all_words(one.text) for one in found)))


def _checked(named: tuple[Found, int], text: str) -> dict[str, Any] | None:
    """The citation, or None where the excerpt has nothing of what it is named for."""
    one, index = named
    said = _said_before(text[:index])
    share = _share(said, _all_words(one.text))
    return None if not share and len(_words(said)) >= _ENOUGH else _citation(one, index, share)


def _said_before(text: str) -> str:
    """The sentence that a marker stands in, or after."""
    plain = _MARKER.sub(" ", text).rstrip()
    return _ENDS.split(plain)[-1]


def _by_words(text: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    words = _words(text)
    shares = [len(words & _words(one.text)) / len(words) for one in found] if words else []
    best = max(shares, default=0.0)
    return [_citation(found[shares.index(best)], len(text), best)] if best >= _SHARE else []


def _share(text: str, there: frozenset[str]) -> float:
    """Of short words only where there are no others: they stand everywhere."""
    said = _MARKER.sub(" ", text)
    words = _words(said) or _all_words(said)
    return len(words & there) / len(words) if words else 0.0


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _all_words(text: str) -> frozenset[str]:
    return frozenset(_ANY_WORD.findall(text.casefold()))


def _citation(found: Found, index: int, share: float) -> dict[str, Any]:
    theirs = {"type": "file_citation", "index": index, "file_id": found.file_id, "filename": found.filename}
    place = {"chunk": found.n, "start": found.meta.get("start"), "end": found.meta.get("end")}
    return {**theirs, **place, "support": round(share, 3)}
