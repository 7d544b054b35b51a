"""Test the measures of rankings: by hand, as trec_eval counts, and two lists against each other."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jobs.retrieval import metrics

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


@pytest.mark.parametrize(
    ("one", "other", "share", "correlation"),
    [
        ("abc", "abc", 1.0, 1.0),
        ("abc", "cba", 1.0, -1.0),
        ("abcd", "abdc", 1.0, 0.8),
        ("abc", "bxc", 2 / 3, 1.0),
        ("abc", "xay", 1 / 3, None),
        ("abcd", "ab", 0.5, 1.0),
        ("abc", "", 0.0, None),
        ("", "", 1.0, None),
    ],
)
def test_two_lists_are_alike(one: str, other: str, share: float, correlation: float | None) -> None:
    assert metrics.overlap(one, other) == pytest.approx(share)
    assert metrics.rank_correlation(one, other) == (None if correlation is None else pytest.approx(correlation))


@pytest.mark.parametrize(
    ("found", "relevant", "recall", "ndcg", "reciprocal"),
    [
        ("abc", "a", 1.0, 1.0, 1.0),
        ("abc", "b", 1.0, 1 / math.log2(3), 0.5),
        ("abc", "ax", 0.5, 1 / (1 + 1 / math.log2(3)), 1.0),
        ("abc", "xy", 0.0, 0.0, 0.0),
        ("", "a", 0.0, 0.0, 0.0),
        ("abc", "bc", 1.0, (1 / math.log2(3) + 0.5) / (1 + 1 / math.log2(3)), 0.5),
        ("abc", "abcdef", 0.5, 1.0, 1.0),  # three places hold no more than three
    ],
)
def test_a_list_is_judged(found: str, relevant: str, recall: float, ndcg: float, reciprocal: float) -> None:
    grades = dict.fromkeys(relevant, 1)

    assert metrics.recall(found, grades, 3) == pytest.approx(recall)
    assert metrics.ndcg(found, grades, 3) == pytest.approx(ndcg)
    assert metrics.reciprocal_rank(found, grades, 3) == pytest.approx(reciprocal)


RANKINGS = json.loads(Path(__file__).with_name("rankings.json").read_text())["rankings"]


@pytest.mark.parametrize("name", metrics.MEASURES)
@pytest.mark.parametrize("k", [1, 5, 10])
def test_a_measure_has_the_values_of_ir_measures_on_200_random_rankings(name: str, k: int) -> None:
    assert len(RANKINGS) == 200
    for ranking in RANKINGS:
        value = metrics.MEASURES[name](ranking["ranked"], ranking["grades"], k)
        assert value == pytest.approx(ranking["values"][f"{name}@{k}"], abs=1e-6), ranking
