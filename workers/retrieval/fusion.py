"""Two rankings into one: what is near in meaning, and what has the words.

    rrf        each list gives weight / (k + rank); with a small k the first few of each list decide
               (Cormack, Clarke, Büttcher: Reciprocal Rank Fusion, SIGIR 2009)
    relative   each list gives weight x score / its best score

Scores come out between 0 and 1: 1 has who is the best of every list. With one list alone its own scores stay, a
cosine below 0 as 0 and BM25 against its best.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from workers.vectors.base import Hit

Fusion = Literal["rrf", "relative"]
Ranked = tuple[Hit, float]


def fuse(near: Sequence[Hit], worded: Sequence[Hit], weights: tuple[float, float], how: Fusion, k: int) -> list[Ranked]:
    """The hits of both lists, best first, each once, with its score."""
    if not weights[1]:
        return [(hit, min(1.0, max(0.0, hit.score))) for hit in near]
    if not weights[0]:
        return [(hit, _relative(worded)(hit, 0)) for hit in worded]
    total = sum(weights)
    scores: dict[tuple[str, int], float] = {}
    hits: dict[tuple[str, int], Hit] = {}
    for found, weight in zip((near, worded), weights, strict=True):
        gives = _relative(found) if how == "relative" else _reciprocal(k)
        for rank, hit in enumerate(found):
            key = (hit.document, hit.n)
            hits.setdefault(key, hit)
            scores[key] = scores.get(key, 0.0) + weight / total * gives(hit, rank)
    best = sorted(scores, key=lambda key: (-scores[key], key))
    return [(hits[key], min(1.0, scores[key])) for key in best]


def _reciprocal(k: int) -> Callable[[Hit, int], float]:
    return lambda _, rank: (k + 1) / (k + 1 + rank)


def _relative(found: Sequence[Hit]) -> Callable[[Hit, int], float]:
    best = max((hit.score for hit in found), default=0.0)
    return lambda hit, _: max(0.0, hit.score) / best if best > 0 else 0.0
