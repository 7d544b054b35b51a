"""How alike two lists of results are, and how good one is against what should be found."""

import math
import statistics
from collections.abc import Collection, Sequence


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of the longer list that both have; of two empty ones 1."""
    longest = max(len(one), len(other))
    return len(set(one) & set(other)) / longest if longest else 1.0


def rank_correlation(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Spearman's, of what both have; None where that is fewer than two."""
    common = [name for name in one if name in set(other)]
    if len(common) < 2:
        return None
    places = {name: place for place, name in enumerate(name for name in other if name in set(common))}
    return statistics.correlation(range(len(common)), [places[name] for name in common])


def recall(found: Sequence[str], relevant: Collection[str]) -> float:
    return len(set(found) & set(relevant)) / len(set(relevant))


def ndcg(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Each file is relevant or not. The best that k results can do is 1."""
    gained = sum(1 / math.log2(place + 2) for place, name in enumerate(found[:k]) if name in relevant)
    best = sum(1 / math.log2(place + 2) for place in range(min(k, len(set(relevant)))))
    return gained / best


def reciprocal_rank(found: Sequence[str], relevant: Collection[str]) -> float:
    return next((1 / place for place, name in enumerate(found, 1) if name in relevant), 0.0)
