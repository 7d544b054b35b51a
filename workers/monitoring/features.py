"""The features of a sample of texts, as they are stored of a baseline, and their comparison with those of another.

embedding                         energy distance
length, language                  population stability index: tenths of the baseline's lengths, its languages
retrieval_score, output_score     energy distance, where enough texts of both samples have one
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from jobs.monitoring.monitors import MIN_TEXTS
from workers.monitoring.distances import Array, energy_distance, energy_limit, psi, psi_limit
from workers.monitoring.texts import TextFeatures

#: The part of a baseline's texts that a language has, or it is counted with others.
_MIN_SHARE: Final = 0.01
_OTHER: Final = "other"
_UNSURE: Final = ""

Measure = Literal["energy_distance", "psi"]


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a sample: a value for each text, but scores only of those that have one."""

    embedding: Array
    length: Array
    language: Any
    retrieval_score: Array
    output_score: Array

    @classmethod
    def of(cls, texts: Sequence[TextFeatures], embeddings: Sequence[Array]) -> "Features":
        """Return the features of texts and of those embeddings that were made."""
        return cls(
            np.array(embeddings, dtype=float),
            np.array([text.length for text in texts], dtype=float),
            np.array([text.language or _UNSURE for text in texts], dtype=str),
            _numbers([text.retrieval_score for text in texts]),
            _numbers([text.output_score for text in texts]),
        )

    def encode(self) -> bytes:
        """Return the features as bytes, embeddings with the digits that models give."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            embedding=self.embedding.astype(np.float32),
            length=self.length,
            language=self.language,
            retrieval_score=self.retrieval_score,
            output_score=self.output_score,
        )
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> "Features":
        """Return features from what `encode` returned."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def compare(baseline: Features, current: Features) -> list[dict[str, Any]]:
    """Return the distance and the limit of each feature that enough texts of both samples have."""
    rows = [
        _by_energy("embedding", baseline.embedding, current.embedding),
        _by_index("length", *_count_lengths(baseline.length, current.length)),
        _by_index("language", *_count_languages(baseline.language, current.language)),
        _by_energy("retrieval_score", baseline.retrieval_score, current.retrieval_score),
        _by_energy("output_score", baseline.output_score, current.output_score),
    ]
    return [row for row in rows if row is not None]


def _by_energy(name: str, baseline: Array, current: Array) -> dict[str, Any] | None:
    if min(len(baseline), len(current)) < MIN_TEXTS:
        return None
    value, limit = energy_distance(baseline, current), energy_limit(baseline, len(current))
    return _row(name, "energy_distance", value, limit, len(baseline), len(current))


def _by_index(name: str, baseline: Array, current: Array) -> dict[str, Any] | None:
    first, second = int(baseline.sum()), int(current.sum())
    if min(first, second) < MIN_TEXTS:
        return None
    return _row(name, "psi", psi(baseline, current), psi_limit(baseline, second), first, second)


def _row(name: str, measure: Measure, value: float, limit: float, first: int, second: int) -> dict[str, Any]:
    return {
        "name": name,
        "measure": measure,
        "value": value,
        "limit": limit,
        "is_drift": value > limit,
        "baseline_texts": first,
        "current_texts": second,
    }


def _count_lengths(baseline: Array, current: Array) -> tuple[Array, Array]:
    """Return how many lengths lie in each tenth of the baseline's; equal lengths are in the same class."""
    edges = np.unique(np.quantile(baseline, np.linspace(0.1, 0.9, 9)))
    first, second = (
        np.bincount(np.searchsorted(edges, lengths), minlength=len(edges) + 1).astype(float)
        for lengths in (baseline, current)
    )
    return first, second


def _count_languages(baseline: Any, current: Any) -> tuple[Array, Array]:
    """Return how many texts are in each language that is not rare in the baseline, and in others."""
    counts = Counter(baseline.tolist())
    names = sorted(name for name, count in counts.items() if count >= _MIN_SHARE * len(baseline))
    first, second = (
        np.array([*(sample[name] for name in names), sum(sample.values()) - sum(sample[name] for name in names)], float)
        for sample in (counts, Counter(current.tolist()))
    )
    return first, second


def _numbers(values: Sequence[float | None]) -> Array:
    return np.array([value for value in values if value is not None], dtype=float)
