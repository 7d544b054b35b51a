"""Split text in any writing into words, and measure how many words of a text other texts contain.

Chinese and Japanese are written without spaces: there each pair of neighbouring characters is a word.

"30天的年假 is OK"  ─▶  30, 天的, 的年, 年假, is, OK

For the share of common words, a word of such a script is a character with its neighbours; a text contains the word if
the text contains a pair of these characters:

"享有三十天"          "有三十天的年假" contains 有三, 三十 and 十天: four of five characters
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

#: For a character set of a regular expression. The second line has the rarer Chinese and Japanese characters.
WIDE: Final = (
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\u3005-\u3007\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
#: The marker of a citation, such as `[1]` or `[1, 2]`.
MARKER: Final = re.compile(r"\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]")
_RUN: Final = re.compile(rf"[{WIDE}]+|[^\W{WIDE}]+")
_IS_WIDE: Final = re.compile(f"[{WIDE}]")
_LONG: Final = 4  # characters; two of a wide script


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text in their order."""
    for run in runs(text):
        yield from pairs(run) if is_wide(run) else (run,)


def runs(text: str) -> list[str]:
    """Return the maximal runs of wide and of other word characters."""
    return _RUN.findall(text)


def is_wide(run: str) -> bool:
    return _IS_WIDE.match(run) is not None


def pairs(run: str) -> list[str]:
    """Return each pair of neighbouring characters of a wide run; a single character alone."""
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]


# ── common words ──


def support(text: str, sources: Iterable[str]) -> float:
    """Return the share of the words of `text` that the sources contain; 0 without words.

    Short words count only if there are no others. Markers of citations do not count.
    """
    stated = stated_words(MARKER.sub(" ", text))
    contained: frozenset[str] = frozenset().union(*map(contained_words, sources))
    return share(set(filter(is_long, stated)) or stated, contained)


def share(words: Collection[str], contained: frozenset[str]) -> float:
    return sum(is_contained(word, contained) for word in words) / len(words) if words else 0.0


def is_contained(word: str, contained: frozenset[str]) -> bool:
    """Return whether a word of a statement is among the words of a source."""
    return word in contained or (is_wide(word) and (word[:2] in contained or word[-2:] in contained))


def is_long(word: str) -> bool:
    return len(word) >= _LONG or (len(word) > 1 and is_wide(word))


def stated_words(text: str) -> set[str]:
    """Return the words of a statement; a character of a wide script counts with its neighbours."""
    words: set[str] = set()
    for run in runs(text.casefold()):
        words.update((run[max(0, at - 1) : at + 2] for at in range(len(run))) if is_wide(run) else (run,))
    return words


def contained_words(text: str) -> frozenset[str]:
    """Return the words of a source; characters of wide scripts in pairs, and each alone."""
    words: set[str] = set()
    for run in runs(text.casefold()):
        words.update((*run, *pairs(run)) if is_wide(run) else (run,))
    return frozenset(words)
