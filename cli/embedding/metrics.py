"""How good a ranking is, by judgements. As trec_eval has them: a gain is the grade, a grade below 1 is not relevant."""

import math
from collections.abc import Mapping, Sequence

Grades = Mapping[str, int]


def recall(ranked: Sequence[str], grades: Grades, most: int) -> float:
    """The share of what is relevant that is among the first `most`."""
    relevant = {text for text, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:most])) / len(relevant)


def ndcg(ranked: Sequence[str], grades: Grades, most: int) -> float:
    """The gain of the first `most`, each less the further down it is, over the best there could be."""
    best = _gain(sorted(grades.values(), reverse=True)[:most])
    return _gain([grades.get(text, 0) for text in ranked[:most]]) / best


def reciprocal_rank(ranked: Sequence[str], grades: Grades, most: int) -> float:
    """1 / the rank of the first that is relevant; 0 where none is among the first `most`."""
    return next((1 / rank for rank, text in enumerate(ranked[:most], 1) if grades.get(text, 0) > 0), 0.0)


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1) if grade > 0)
