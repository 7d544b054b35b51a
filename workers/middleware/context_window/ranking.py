"""Which of some texts have to do with a question: by their words, or by vectors that somebody has made of them.

words     cosine of tf-idf:  tf = 1 + ln(count),  idf = ln(1 + texts / texts that have the word)
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from workers.retrieval.lexical import WIDE

#: Chinese and Japanese write no spaces, and Korean joins its words: there each character is one.
_WIDE: Final = f"{WIDE}\uac00-\ud7af"
_WORD: Final = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+")
#: A full stop is followed by a space; a wide one (of Chinese and Japanese) by nothing.
_END: Final = ".!?\u2026"
_SENTENCE: Final = re.compile(f"(?<=[{_END}])\\s+|(?<=[{_END}][\"')\\]])\\s+|(?<=[\u3002\uff01\uff1f])|\\n+")

Weights = dict[str, float]  # of words; their squares add up to 1


def sentences(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in _SENTENCE.split(text) if piece) if _WORD.search(part)]


def words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def weights(texts: Sequence[str], question: str) -> tuple[list[Weights], Weights]:
    """Of the texts and of the question, words being as rare as they are in the texts."""
    counted = [words(text) for text in texts]
    having: Counter[str] = Counter()
    for one in counted:
        having.update(one.keys())
    rare = {word: math.log(1 + len(texts) / many) for word, many in having.items()}
    return [_weighted(one, rare) for one in counted], _weighted(words(question), rare)


def centre(of: Iterable[Weights]) -> Weights:
    """What all of them are about."""
    total: Weights = {}
    for one in of:
        for word, weight in one.items():
            total[word] = total.get(word, 0.0) + weight
    return _unit(total)


def cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    if len(one) > len(other):
        one, other = other, one
    return math.fsum(weight * other.get(word, 0.0) for word, weight in one.items())


def _weighted(counted: Counter[str], rare: Mapping[str, float]) -> Weights:
    return _unit({word: (1 + math.log(count)) * rare[word] for word, count in counted.items() if word in rare})


def _unit(raw: Weights) -> Weights:
    norm = math.sqrt(math.fsum(value * value for value in raw.values()))
    return {word: value / norm for word, value in raw.items()} if norm else {}
