"""Vectors in this process's memory, for tests."""

import math
import re
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from workers.vectors.base import Hit, Store, Vector, VectorEntry, check_vector, words

K1, B = 1.2, 0.75  # BM25's customary constants
_WORD: Final = re.compile(r"\w+")


class MemoryVectors:
    """A vector database in a dict. Searches are exact, and slow beyond a few thousand entries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, list[VectorEntry]] = {}

    def write(self, store: Store, entries: Sequence[VectorEntry]) -> None:
        for entry in entries:
            check_vector(store, entry.vector)
        if entries:
            with self._lock:
                self._entries.setdefault(store.id, []).extend(entries)

    def find_vectors(self, store: Store, digests: Collection[str]) -> dict[str, Vector]:
        requested = set(digests)
        return {entry.digest: entry.vector for entry in self._entries_of(store) if entry.digest in requested}

    def drop(self, store: Store, documents: Collection[str]) -> int:
        with self._lock:
            before = self._entries.get(store.id, [])
            left = [entry for entry in before if entry.document not in documents]
            if before:
                self._entries[store.id] = left
            return len(before) - len(left)

    def erase(self, store: Store) -> None:
        """Do nothing: dropped entries are erased already."""

    def drop_store(self, store: Store) -> None:
        with self._lock:
            self._entries.pop(store.id, None)

    def nearest(self, store: Store, vector: Vector, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        query = check_vector(store, vector)
        scored = [(_cosine(entry.vector, query), entry) for entry in self._entries_of(store, documents)]
        return _best_hits(scored, limit)

    def matching(self, store: Store, query: str, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        query_words = set(_words(words(query)))
        entries = self._entries_of(store, documents)
        texts = [Counter(_words(entry.text)) for entry in entries]
        weights = {word: _rarity(sum(word in text for text in texts), len(texts)) for word in query_words}
        mean = sum(text.total() for text in texts) / max(1, len(texts))
        scored = [(_bm25(weights, text, mean), entry) for text, entry in zip(texts, entries, strict=True)]
        return _best_hits([(score, entry) for score, entry in scored if score > 0], limit)

    def counts(self, store: Store) -> dict[str, int]:
        return dict(Counter(entry.document for entry in self._entries_of(store)))

    def numbers(self, store: Store, document: str) -> list[int]:
        return sorted(entry.n for entry in self._entries_of(store, [document]))

    def stores(self) -> list[str]:
        with self._lock:
            return sorted(self._entries)

    def tend(self, store: Store) -> None:
        """Do nothing: there is no index."""

    def check(self) -> None:
        """Do nothing: memory is always available."""

    def close(self) -> None:
        """Do nothing: the vectors end with the process."""

    def _entries_of(self, store: Store, documents: Collection[str] | None = None) -> list[VectorEntry]:
        with self._lock:
            entries = list(self._entries.get(store.id, []))
        if documents is None:
            return entries
        requested = set(documents)
        return [entry for entry in entries if entry.document in requested]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _rarity(texts_with: int, texts: int) -> float:
    return math.log(1 + (texts - texts_with + 0.5) / (texts_with + 0.5))


def _bm25(weights: dict[str, float], text: Counter[str], mean: float) -> float:
    long = K1 * (1 - B + B * text.total() / mean) if mean else K1
    return sum(weight * text[word] * (K1 + 1) / (text[word] + long) for word, weight in weights.items())


def _cosine(left: Vector, right: Vector) -> float:
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if lengths else 0.0


def _best_hits(scored: list[tuple[float, VectorEntry]], limit: int) -> list[Hit]:
    best = sorted(scored, key=lambda pair: -pair[0])[: max(0, limit)]
    return [Hit(entry.document, entry.n, entry.text, entry.meta, score) for score, entry in best]
