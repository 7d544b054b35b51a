"""Benchmarks bring the same documents into stores on every run, each once."""

import numpy as np
import pytest

from bench import documents
from bench.embed import cosines


@pytest.mark.soak  # it reads every package's documents twice
def test_corpus_is_the_same_on_every_run_and_has_every_kind() -> None:
    first, again = documents.gathered(300), documents.gathered(300)

    assert [paper.name for paper in first] == [paper.name for paper in again]
    assert len({paper.data for paper in first}) == len({paper.name for paper in first}) == len(first)
    assert {"txt", "html", "pdf"} <= {paper.name.rsplit(".", 1)[1] for paper in first}


def test_small_documents_differ() -> None:
    papers = documents.small(1200)

    assert len({paper.data for paper in papers}) == len({paper.name for paper in papers}) == 1200


def test_cosine_is_of_rows_of_any_length() -> None:
    ours = np.array([[3.0, 4.0], [1.0, 0.0]], dtype=np.float32)
    theirs = np.array([[6.0, 8.0], [1.0, 1.0]], dtype=np.float32)

    np.testing.assert_allclose(cosines(ours, theirs), [1.0, 2**-0.5], rtol=1e-6)
