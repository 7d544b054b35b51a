"""The arithmetic of a comparison: by hand, by brute force, and as trec_eval counts."""

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from cli.embedding import metrics, ranking
from cli.embedding.ranking import Nearest

GRADES = {"a": 3, "b": 2, "c": 0, "d": 1, "e": -1}
LOG3 = math.log2(3)
BEST = 3 + 2 / LOG3 + 1 / 2

#: Ranking, recall at 2, nDCG at 3, reciprocal rank at 3.
CASES: dict[str, tuple[list[str], float, float, float]] = {
    "as good as can be": (["a", "b", "d"], 2 / 3, 1.0, 1.0),
    "backwards": (["d", "b", "a"], 2 / 3, (1 + 2 / LOG3 + 3 / 2) / BEST, 1.0),
    "what is not relevant comes first": (["c", "x", "a"], 0.0, (3 / 2) / BEST, 1 / 3),
    "a grade below nothing is nothing": (["e", "a", "x"], 1 / 3, (3 / LOG3) / BEST, 1 / 2),
    "too late": (["x", "y", "z", "a"], 0.0, 0.0, 0.0),
    "nothing": ([], 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_computed_by_hand(case: str) -> None:
    ranked, recall, ndcg, rank = CASES[case]

    assert metrics.recall(ranked, GRADES, 2) == pytest.approx(recall)
    assert metrics.ndcg(ranked, GRADES, 3) == pytest.approx(ndcg)
    assert metrics.reciprocal_rank(ranked, GRADES, 3) == pytest.approx(rank)


def trec_eval(ranked: Sequence[str], grades: Mapping[str, int], most: int) -> tuple[float, float]:
    """recall_k and ndcg_cut_k as its sources have them: m_recall.c and m_ndcg_cut.c."""
    found = gain = ideal = 0.0
    for n, name in enumerate(ranked[:most]):
        if grades.get(name, 0) >= 1:
            found += 1
            gain += grades[name] / math.log2(n + 2)
    for n, grade in enumerate(sorted((grade for grade in grades.values() if grade >= 1), reverse=True)[:most]):
        ideal += grade / math.log2(n + 2)
    return found / sum(grade >= 1 for grade in grades.values()), gain / ideal


def test_metrics_are_trec_evals_on_rankings_at_random() -> None:
    chance = random.Random(11)
    names = [f"d{n}" for n in range(40)]
    for _ in range(200):
        grades = {name: chance.choice([-1, 0, 0, 1, 2, 3]) for name in chance.sample(names, 15)} | {"d0": 1}
        ranked = chance.sample(names, 30)
        for most in (1, 5, 10, 100):
            expected = trec_eval(ranked, grades, most)
            assert (metrics.recall(ranked, grades, most), metrics.ndcg(ranked, grades, most)) == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 7, 64, 500])
def test_nearest_of_blocks_are_those_of_the_whole(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_QUERIES", 5)
    chance = np.random.default_rng(3)
    queries = chance.normal(size=(13, 16)).astype(np.float32)
    texts = chance.normal(size=(300, 16)).astype(np.float32)
    nearest = Nearest(queries, 20)

    for at in range(0, len(texts), block):
        nearest.add(texts[at : at + block])

    lengths = [np.linalg.norm(texts, axis=1), np.linalg.norm(queries, axis=1)]
    cosines = (queries @ texts.T).astype(np.float64) / np.outer(lengths[1], lengths[0])
    found = nearest.places()
    for row, places in zip(cosines, found, strict=True):
        assert len(set(places)) == 20
        assert row[places] == pytest.approx(sorted(row, reverse=True)[:20], abs=1e-6)
        assert list(row[places]) == pytest.approx(sorted(row[places], reverse=True), abs=1e-6)


def test_of_equals_the_earlier_comes_first_and_few_texts_are_all_there_are() -> None:
    nearest = Nearest(np.asarray([[1, 0]], np.float32), 4)

    nearest.add(np.asarray([[0, 1], [1, 0]], np.float32))
    nearest.add(np.asarray([[2, 0], [0, 0], [1, 0]], np.float32))

    assert nearest.places() == [[1, 2, 4, 0]]
    few = Nearest(np.asarray([[1, 0]], np.float32), 100)
    few.add(np.asarray([[0, 1], [1, 0]], np.float32))
    assert few.places() == [[1, 0]]
