"""Split text in any writing into words, and find near duplicates by their words.

Chinese and Japanese are written without spaces: there two characters side by side are a word.

"30天的年假 is OK"  ─▶  30, 天的, 的年, 年假, is, OK

Near duplicates are chunks that overlap, copies of a file, boilerplate. Two texts are as alike as the share of their
triples of words that both have; the better ranked of two stays. Counted by words and not by vectors, that is the same
with every embedding model.

"a b c d" ─▶ {a b c, b c d}
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from jobs.retrieval.searches import Found

#: Of a regular expression's set. The second line is what Chinese and Japanese characters fill beside it, less often.
WIDE: Final = (
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\u3005-\u3007\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN: Final = re.compile(rf"[{WIDE}]+|[^\W{WIDE}]+")
_IS_WIDE: Final = re.compile(f"[{WIDE}]")


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text in their order."""
    for run in runs(text):
        yield from pairs(run) if is_wide(run) else (run,)


def runs(text: str) -> list[str]:
    """Return the runs of wide and of other word characters, each as long as it goes."""
    return _RUN.findall(text)


def is_wide(run: str) -> bool:
    return _IS_WIDE.match(run) is not None


def pairs(run: str) -> list[str]:
    """Return each two neighbouring characters of a wide run; a single character stands alone."""
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]


# ── near duplicates ──

_SHINGLE_WORDS: Final = 3

Shingles = frozenset[tuple[str, ...]]


def distinct(found: Sequence[Found], alike: float, most: int) -> tuple[list[Found], int]:
    """Return the first `most` hits that resemble no better one by `alike` or more, and how many were dropped."""
    kept: list[Found] = []
    seen: list[Shingles] = []
    dropped = 0
    for one in found:
        if len(kept) == most:
            break
        mine = shingles(one.text)
        if any(likeness(mine, other) >= alike for other in seen):
            dropped += 1
            continue
        kept.append(one)
        seen.append(mine)
    return kept, dropped


def shingles(text: str) -> Shingles:
    """Return the triples of words of a text; a text of one or two words is one shingle."""
    words = list(words_of(text.casefold()))
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return frozenset(_runs(words, last)) if words else frozenset()


def likeness(one: Shingles, other: Shingles) -> float:
    """Return the Jaccard similarity of two sets of shingles."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if both else 0.0


def _runs(words: Sequence[str], last: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[at : at + _SHINGLE_WORDS]) for at in range(last))
