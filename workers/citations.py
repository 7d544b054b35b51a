"""Which of the excerpts an answer rests on, as `file_citation` annotations of its text.

"It purrs [1]."      the model names them: a citation where each marker stands
"It purrs."          it names none: the excerpt that has most of the answer's words, if it has a third of them
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from jobs.searches import Found

_MARKER: Final = re.compile(r"\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]")
_WORD: Final = re.compile(r"\w{4,}")
_SHARE: Final = 1 / 3


def citations(text: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    """OpenAI's annotations; `index` is where in the text the citation stands, in characters."""
    named = [
        _citation(found[int(number) - 1], marker.start())
        for marker in _MARKER.finditer(text)
        for number in marker.group(1).split(",")
        if 1 <= int(number) <= len(found)
    ]
    return named or _by_words(text, found)


def _by_words(text: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    words = _words(text)
    shares = [len(words & _words(one.text)) / len(words) for one in found] if words else []
    best = max(shares, default=0.0)
    return [_citation(found[shares.index(best)], len(text))] if best >= _SHARE else []


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _citation(found: Found, index: int) -> dict[str, Any]:
    return {"type": "file_citation", "index": index, "file_id": found.file_id, "filename": found.filename}
