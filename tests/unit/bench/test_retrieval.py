"""Measures of a search equal hand-worked examples."""

import math

import pytest

from bench import retrieval

TEN = [f"d{n}" for n in range(10)]


def test_gain_falls_with_the_rank() -> None:
    third = retrieval.ndcg(["a", "b", "c", "d"], frozenset({"c"}))

    assert third == pytest.approx(0.5)  # 1 / log2(4), and the best there could be is 1 / log2(2)
    assert retrieval.ndcg(["c"], frozenset({"c"})) == 1.0
    assert retrieval.ndcg(["a", "b"], frozenset({"c"})) == 0.0


def test_gain_is_over_the_best_there_could_be() -> None:
    found = retrieval.ndcg(["a", "x", "b"], frozenset({"a", "b", "c"}))

    assert found == pytest.approx((1 + 0.5) / (1 + 0.63093 + 0.5), abs=1e-5)


@pytest.mark.parametrize(("rank", "worth"), [(1, 1.0), (2, 0.5), (10, 0.1), (11, 0.0)])
def test_nothing_counts_beyond_the_tenth(rank: int, worth: float) -> None:
    ranked = [*TEN[: rank - 1], "wanted", "wanted too"]

    assert retrieval.reciprocal_rank(ranked, frozenset({"wanted"})) == pytest.approx(worth)
    assert (retrieval.ndcg(ranked, frozenset({"wanted"})) > 0) is (rank <= 10)


def test_means_are_over_all_queries() -> None:
    run = {"q0": ["a", "b"], "q1": ["a", "b", "c", "d"], "q2": []}

    ndcg, mrr = retrieval.means(run, {"q0": "a", "q1": "d", "q2": "a"})

    assert mrr == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert ndcg == pytest.approx((1 + 1 / math.log2(5) + 0) / 3)


def test_a_document_counts_once_at_its_best_chunk() -> None:
    assert retrieval.by_document(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]
