"""Lists of results against each other, and against what should be found."""

import math

import pytest

from api.retrieval import indexes


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
    assert indexes.overlap(one, other) == pytest.approx(share)
    assert indexes.rank_correlation(one, other) == (None if correlation is None else pytest.approx(correlation))


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
    assert indexes.recall(found, relevant) == pytest.approx(recall)
    assert indexes.ndcg(found, relevant, 3) == pytest.approx(ndcg)
    assert indexes.reciprocal_rank(found, relevant) == pytest.approx(reciprocal)
