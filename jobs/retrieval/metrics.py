"""Measure how good a ranking is by judgements, and how alike two rankings are.

Judgements are as trec_eval has them: a gain is the grade, a grade below 1 is not relevant.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

Grades = Mapping[str, int]


def recall(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return the share of what is relevant that is among the first `k`."""
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def ndcg(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return the discounted gain of the first `k` over that of the best ranking."""
    best = _gain(sorted(grades.values(), reverse=True)[:k])
    return _gain([grades.get(name, 0) for name in ranked[:k]]) / best


def reciprocal_rank(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return 1 / the rank of the first that is relevant; 0 where none is among the first `k`."""
    return next((1 / rank for rank, name in enumerate(ranked[:k], 1) if grades.get(name, 0) > 0), 0.0)


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the share of the longer list that both have; 1 for two empty lists."""
    longest = max(len(one), len(other))
    return len(set(one) & set(other)) / longest if longest else 1.0


def rank_correlation(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Return Spearman's correlation over what both lists have; None where that is fewer than two."""
    common = [name for name in one if name in set(other)]
    if len(common) < 2:
        return None
    ranks = {name: rank for rank, name in enumerate(name for name in other if name in set(common))}
    return statistics.correlation(range(len(common)), [ranks[name] for name in common])


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1) if grade > 0)
