"""Measure the quality of a ranking by judgements, and the similarity of two rankings.

Each measure of a ranking needs an item that is relevant.
Judgements follow trec_eval: the gain is the grade, and a grade below 1 is not relevant.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

Grades = Mapping[str, int]


def recall(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return the share of the relevant items that are among the first `k`."""
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def precision(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return the share of relevant items among the first `k`; a shorter list counts as `k` items."""
    return sum(grades.get(name, 0) > 0 for name in ranked[:k]) / k


def average_precision(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return the mean of the precisions at the ranks of the relevant items, 0 for those not among the first `k`.

    The mean of this over all queries is called MAP.
    """
    ranks = [rank for rank, name in enumerate(ranked[:k], 1) if grades.get(name, 0) > 0]
    relevant = sum(grade > 0 for grade in grades.values())
    return sum(number / rank for number, rank in enumerate(ranks, 1)) / relevant


def ndcg(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return the discounted cumulative gain of the first `k`, divided by that of the ideal ranking."""
    best = _gain(sorted(grades.values(), reverse=True)[:k])
    return _gain([grades.get(name, 0) for name in ranked[:k]]) / best


def reciprocal_rank(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Return 1 / rank of the first relevant item; 0 if none is among the first `k`."""
    return next((1 / rank for rank, name in enumerate(ranked[:k], 1) if grades.get(name, 0) > 0), 0.0)


#: The measures by their names in evaluations; the mean of the last two over all queries gives them their names.
MEASURES: Final[Mapping[str, Callable[[Sequence[str], Grades, int], float]]] = {
    "recall": recall,
    "precision": precision,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "map": average_precision,
}


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the number of common items divided by the longer list's length; 1 for two empty lists."""
    longest = max(len(first), len(second))
    return len(set(first) & set(second)) / longest if longest else 1.0


def rank_correlation(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return Spearman's correlation of the common items; None for fewer than two."""
    common = [name for name in first if name in set(second)]
    if len(common) < 2:
        return None
    ranks = {name: rank for rank, name in enumerate(name for name in second if name in set(common))}
    return statistics.correlation(range(len(common)), [ranks[name] for name in common])


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1) if grade > 0)
