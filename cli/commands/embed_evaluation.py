"""Embed texts with a model of the running deployment, measure the cost, and rank the texts for each query."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cli.client.server import Refused, Server
from cli.errors import CliError

Matrix = npt.NDArray[np.float32]

_QUERIES: Final = 256  # queries that are compared with a block of texts at once


class Nearest:
    """The best `most` texts of each query so far, by index in the corpus. Of equal scores the lower index wins."""

    def __init__(self, queries: Matrix, depth: int) -> None:
        self._queries = normalised(queries)
        self._most = depth
        self._scores = np.empty((len(queries), 0), np.float32)
        self._indexes = np.empty((len(queries), 0), np.int64)
        self._seen = 0

    def add(self, texts: Matrix) -> None:
        """Rank the vectors of the next texts of the corpus."""
        block, width = normalised(texts), min(self._most, self._seen + len(texts))
        scores = np.empty((len(self._queries), width), np.float32)
        indexes = np.empty(scores.shape, np.int64)
        fresh = np.arange(self._seen, self._seen + len(block))
        for start in range(0, len(self._queries), _QUERIES):
            rows = slice(start, start + _QUERIES)
            both = np.hstack((self._scores[rows], self._queries[rows] @ block.T))
            named = np.hstack((self._indexes[rows], np.broadcast_to(fresh, (len(both), len(fresh)))))
            order = np.argsort(-both, axis=1, kind="stable")[:, :width]
            scores[rows], indexes[rows] = np.take_along_axis(both, order, 1), np.take_along_axis(named, order, 1)
        self._scores, self._indexes, self._seen = scores, indexes, self._seen + len(block)

    def indexes(self) -> list[list[int]]:
        """Return for each query the indices of its texts, best first."""
        indexes: Any = self._indexes.tolist()
        return list(indexes)


def normalised(vectors: Matrix) -> Matrix:
    """Return the vectors at length 1; not every server returns unit vectors."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


_TEXTS: Final = 32  # texts of one request
TYPE: Final = "input_type"
_MEASURED: Final = {"truncate": True, "cache": False}  # a cached answer would not be a measurement
QUERY: Final = {TYPE: "query", **_MEASURED}
PASSAGE: Final = {TYPE: "passage", **_MEASURED}
_LADDER: Final = ((TYPE, "truncate", "cache"), (TYPE, "truncate"), (TYPE,), ())


@dataclass(slots=True)
class Cost:
    """The cost of embedding. `truncated` is None where a server does not report truncated inputs."""

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    truncated: int | None = 0

    def add(self, answer: Any, texts: int) -> None:
        cut = (answer.model_extra or {}).get("truncated")
        self.texts += texts
        self.tokens += answer.usage.prompt_tokens if answer.usage else 0
        self.truncated = None if self.truncated is None or cut is None else self.truncated + len(cut)


@dataclass(slots=True)
class Embedder:
    """Embed with one model. `taken` are Nightmill's request fields that the server accepts; others are left out."""

    server: Server
    model: str
    concurrency: int
    taken: tuple[str, ...] = _LADDER[0]
    dimensions: int = 0
    corpus: Cost = field(default_factory=Cost)
    queries: Cost = field(default_factory=Cost)

    def timed(self, texts: Sequence[str]) -> tuple[Matrix, list[float]]:
        """Embed queries one after the other; return their vectors and the seconds of each."""
        self._warm_up(texts[0])
        rows, seconds = [], []
        for text in texts:
            began = time.perf_counter()
            answer = self._ask([text], QUERY)
            seconds.append(time.perf_counter() - began)
            self.queries.add(answer, 1)
            rows.append(self._vectors(answer, 1))
        self.queries.seconds = sum(seconds)
        return np.vstack(rows), seconds

    def block(self, texts: Sequence[str]) -> Matrix:
        """Embed passages, several requests at once."""
        parts = [list(part) for part in _batched(texts, _TEXTS)]
        began = time.perf_counter()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="embed-eval") as threads:
            answers = list(threads.map(lambda part: self._ask(part, PASSAGE), parts))
        self.corpus.seconds += time.perf_counter() - began
        rows = []
        for part, answer in zip(parts, answers, strict=True):
            self.corpus.add(answer, len(part))
            rows.append(self._vectors(answer, len(part)))
        return np.vstack(rows)

    def _warm_up(self, text: str) -> None:
        """Find the request fields that the server accepts. Raises CliError for a model without embeddings."""
        for self.taken in _LADDER[:-1]:
            try:
                self._ask([text], QUERY)
            except Refused:
                continue
            return
        self.taken = _LADDER[-1]
        self._ask([text], QUERY)  # raises any other error

    def _ask(self, texts: Sequence[str], fields: dict[str, Any]) -> Any:
        try:
            return self.server.embed(self.model, list(texts), {name: fields[name] for name in self.taken})
        except Refused as refusal:
            raise Refused(f"{self.model}: {refusal}") from refusal

    def _vectors(self, answer: Any, count: int) -> Matrix:
        """Return the vectors of an answer. Raises CliError where they differ in length."""
        rows = [entry.embedding for entry in sorted(answer.data or (), key=lambda entry: entry.index)]
        lengths = {len(row) for row in rows}
        if len(rows) != count or len(lengths) != 1 or 0 in lengths:
            raise CliError(f"{self.model} gave {len(rows)} vectors of {sorted(lengths)} dimensions for {count} texts")
        [length] = lengths
        self.dimensions = self.dimensions or length
        vectors = np.asarray(rows, np.float32)
        if length != self.dimensions or not np.isfinite(vectors).all():
            raise CliError(f"{self.model} gave vectors that cannot be compared with those before")
        return vectors


def _batched(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[at : at + size] for at in range(0, len(texts), size))
