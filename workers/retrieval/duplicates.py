"""Near duplicates among what was found: chunks that overlap, copies of a file, boilerplate.

    "a b c d" ─▶ {a b c, b c d}      two texts are as alike as the share of their triples of words that both have

The better ranked of two stays. Counted by words and not by vectors, it is the same with every embedding model.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from jobs.retrieval.searches import Found
from workers.retrieval import wide

_WORDS: Final = 3

Shingles = frozenset[tuple[str, ...]]


def distinct(found: Sequence[Found], alike: float, most: int) -> tuple[list[Found], int]:
    """The first `most` of them that are less `alike` than that to every one before, and how many were passed over."""
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
    """Of a text of one or two words, these."""
    words = list(wide.words(text.casefold()))
    last = max(1, len(words) - _WORDS + 1)
    return frozenset(_runs(words, last)) if words else frozenset()


def likeness(one: Shingles, other: Shingles) -> float:
    """Jaccard's."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if both else 0.0


def _runs(words: Sequence[str], last: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[at : at + _WORDS]) for at in range(last))
