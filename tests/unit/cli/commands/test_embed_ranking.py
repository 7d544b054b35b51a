"""Test the nearest texts of each query, by brute force."""

import numpy as np
import pytest

from cli.commands import embed_evaluation
from cli.commands.embed_evaluation import Nearest


@pytest.mark.parametrize("block", [1, 7, 64, 500])
def test_nearest_of_blocks_are_those_of_the_whole(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_evaluation, "_QUERIES", 5)
    chance = np.random.default_rng(3)
    queries = chance.normal(size=(13, 16)).astype(np.float32)
    texts = chance.normal(size=(300, 16)).astype(np.float32)
    nearest = Nearest(queries, 20)

    for at in range(0, len(texts), block):
        nearest.add(texts[at : at + block])

    lengths = [np.linalg.norm(texts, axis=1), np.linalg.norm(queries, axis=1)]
    cosines = (queries @ texts.T).astype(np.float64) / np.outer(lengths[1], lengths[0])
    found = nearest.indexes()
    for row, indexes in zip(cosines, found, strict=True):
        assert len(set(indexes)) == 20
        assert row[indexes] == pytest.approx(sorted(row, reverse=True)[:20], abs=1e-6)
        assert list(row[indexes]) == pytest.approx(sorted(row[indexes], reverse=True), abs=1e-6)


def test_of_equals_the_earlier_comes_first_and_few_texts_are_all_there_are() -> None:
    nearest = Nearest(np.asarray([[1, 0]], np.float32), 4)

    nearest.add(np.asarray([[0, 1], [1, 0]], np.float32))
    nearest.add(np.asarray([[2, 0], [0, 0], [1, 0]], np.float32))

    assert nearest.indexes() == [[1, 2, 4, 0]]
    few = Nearest(np.asarray([[1, 0]], np.float32), 100)
    few.add(np.asarray([[0, 1], [1, 0]], np.float32))
    assert few.indexes() == [[1, 0]]
