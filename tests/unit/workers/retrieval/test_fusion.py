"""Two rankings become one."""

from typing import Any

import pytest

from workers.retrieval.fusion import fuse
from workers.vectors.base import Hit


def hits(**scores: float) -> list[Hit]:
    return [Hit(name, 0, name, {}, score) for name, score in scores.items()]


def ranked(*arguments: Any) -> list[tuple[str, float]]:
    return [(hit.document, round(score, 4)) for hit, score in fuse(*arguments)]


def test_who_is_best_in_both_has_one() -> None:
    found = ranked(hits(a=0.9, b=0.5), hits(a=12, c=3), (1, 1), "rrf", 1)

    assert found == [("a", 1.0), ("b", 0.3333), ("c", 0.3333)]


def test_to_be_in_both_lists_is_better_than_to_lead_one() -> None:
    found = ranked(hits(a=0.9, b=0.8), hits(c=9, b=8), (1, 1), "rrf", 60)

    assert [name for name, _ in found] == ["b", "a", "c"]


@pytest.mark.parametrize(("weights", "best"), [((3, 1), "a"), ((1, 3), "b"), ((0.3, 0.1), "a")])
@pytest.mark.parametrize("how", ["rrf", "relative"])
def test_weights_decide(weights: tuple[float, float], best: str, how: str) -> None:
    assert ranked(hits(a=0.9, x=0.1), hits(b=7, y=1), weights, how, 1)[0] == (best, 0.75)


def test_a_small_k_favours_the_first() -> None:
    second = {k: dict(ranked(hits(a=0.9, b=0.8), [], (1, 1), "rrf", k))["b"] for k in (0, 1, 60)}

    assert second == {0: 0.25, 1: 0.3333, 60: 0.4919}


def test_relative_scores_count_by_their_distance_to_the_best() -> None:
    found = ranked(hits(a=0.8, b=0.4, c=-0.2), hits(b=10, a=5), (1, 1), "relative", 1)

    assert found == [("a", 0.75), ("b", 0.75), ("c", 0.0)]


def test_of_meaning_alone_the_cosine_stays() -> None:
    assert ranked(hits(a=0.7, b=-0.3, c=1.0001), hits(z=9), (1, 0), "rrf", 1) == [("a", 0.7), ("b", 0.0), ("c", 1.0)]


def test_of_words_alone_the_best_has_one() -> None:
    assert ranked(hits(z=0.9), hits(a=8, b=2), (0, 1), "rrf", 1) == [("a", 1.0), ("b", 0.25)]


@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1)])
@pytest.mark.parametrize("how", ["rrf", "relative"])
def test_of_nothing_nothing_comes(weights: tuple[float, float], how: str) -> None:
    assert ranked([], [], weights, how, 1) == []


def test_chunks_of_a_document_are_hits_of_their_own() -> None:
    near = [Hit("a", n, f"text {n}", {}, 0.5) for n in range(3)]

    found = fuse(near, near[::-1], (1, 1), "rrf", 1)

    assert sorted(hit.n for hit, _ in found) == [0, 1, 2]


def test_equal_scores_are_ordered_by_name() -> None:
    assert [name for name, _ in ranked(hits(b=0.9), hits(a=9), (1, 1), "rrf", 1)] == ["a", "b"]
