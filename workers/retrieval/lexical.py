"""Leave stop words out of queries, and find near duplicates by their words.

Near duplicates are overlapping chunks, copies of a file, boilerplate. The similarity of two texts is the share of their
word triples that both have; the better ranked of two is kept. It uses words and not vectors, so that it is the same for
every embedding model.

"a b c d" ─▶ {a b c, b c d}

In a small store a word such as "for" is as rare as any other, so BM25 would weight it highly. The language of a query
is the one with the most stop words in it.

"Who pays for trips?"  ─▶  English (who, for)  ─▶  "pays trips?"
"""

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Final

import stop_words

from jobs.retrieval.searches import FoundChunk
from jobs.retrieval.words import words_of

# ── stop words ──

_ENGLISH: Final = "en"
_MIN_STOP_WORDS: Final = 2  # of a language other than English: one may be a name or an English word ("MIT", "die")
_MARKS: Final = string.punctuation + "¿¡«»„“”‘’‹›…–—؟،؛।॥"  # noqa: RUF001 (other languages' own)


def keywords(query: str) -> str:
    """Return a query without the stop words of its language, or unchanged if no other word remains."""
    words = [(word, word.strip(_MARKS).casefold()) for word in query.split()]
    languages = _languages_of({stripped for _, stripped in words})
    left = [(word, stripped) for word, stripped in words if languages.isdisjoint(_stop_words().get(stripped, ()))]
    return " ".join(word for word, _ in left) if any(stripped for _, stripped in left) else query


def _languages_of(words: Iterable[str]) -> frozenset[str]:
    """Return the languages with the most stop words among `words`; English wins a tie."""
    counts = Counter(language for word in words for language in _stop_words().get(word, ()))
    highest = max(counts.values(), default=0)
    if highest and counts[_ENGLISH] == highest:
        return frozenset({_ENGLISH})
    return frozenset(language for language, count in counts.items() if count == highest >= _MIN_STOP_WORDS)


@cache
def _stop_words() -> Mapping[str, Sequence[str]]:
    """Return the languages of which each word is a stop word."""
    languages = defaultdict(list)
    for language in stop_words.LANGUAGE_MAPPING:
        for word in stop_words.get_stop_words(language):
            languages[word.strip("\ufeff").casefold()].append(language)
    return dict(languages)


# ── near duplicates ──

_SHINGLE_WORDS: Final = 3

Shingles = frozenset[tuple[str, ...]]


def distinct(chunks: Sequence[FoundChunk], alike: float, limit: int) -> tuple[list[FoundChunk], int]:
    """Return the first `limit` chunks that are less similar than `alike` to all better ones, and count the dropped."""
    selected: list[FoundChunk] = []
    seen: list[Shingles] = []
    dropped = 0
    for chunk in chunks:
        if len(selected) == limit:
            break
        own_shingles = shingles(chunk.text)
        if any(likeness(own_shingles, other) >= alike for other in seen):
            dropped += 1
            continue
        selected.append(chunk)
        seen.append(own_shingles)
    return selected, dropped


def shingles(text: str) -> Shingles:
    """Return the word triples of a text; a text of one or two words is one shingle."""
    words = list(words_of(text.casefold()))
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return frozenset(_runs(words, last)) if words else frozenset()


def likeness(left: Shingles, right: Shingles) -> float:
    """Return the Jaccard similarity of two sets of shingles."""
    both = len(left & right)
    return both / (len(left) + len(right) - both) if both else 0.0


def _runs(words: Sequence[str], last: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[at : at + _SHINGLE_WORDS]) for at in range(last))
