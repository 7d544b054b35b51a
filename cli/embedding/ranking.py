"""The nearest texts of each query, exactly: every text is compared with every query, a block of texts at a time."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

_QUERIES: Final = 256  # compared with one block of texts at a time


class Nearest:
    """The best `most` texts of each query so far, by their place in the corpus. Of equals the earlier comes first."""

    def __init__(self, queries: Matrix, most: int) -> None:
        self._queries = normalised(queries)
        self._most = most
        self._scores = np.empty((len(queries), 0), np.float32)
        self._places = np.empty((len(queries), 0), np.int64)
        self._seen = 0

    def add(self, texts: Matrix) -> None:
        """The vectors of the next texts of the corpus."""
        block, width = normalised(texts), min(self._most, self._seen + len(texts))
        scores = np.empty((len(self._queries), width), np.float32)
        places = np.empty(scores.shape, np.int64)
        fresh = np.arange(self._seen, self._seen + len(block))
        for start in range(0, len(self._queries), _QUERIES):
            rows = slice(start, start + _QUERIES)
            both = np.hstack((self._scores[rows], self._queries[rows] @ block.T))
            named = np.hstack((self._places[rows], np.broadcast_to(fresh, (len(both), len(fresh)))))
            order = np.argsort(-both, axis=1, kind="stable")[:, :width]
            scores[rows], places[rows] = np.take_along_axis(both, order, 1), np.take_along_axis(named, order, 1)
        self._scores, self._places, self._seen = scores, places, self._seen + len(block)

    def places(self) -> list[list[int]]:
        """By query, best first."""
        found: Any = self._places.tolist()
        return list(found)


def normalised(vectors: Matrix) -> Matrix:
    """Of length 1: some servers do not give them so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
