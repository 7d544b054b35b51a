"""Metrics of a classification: expected and predicted labels, counted as they come.

    add(expected, predicted) … ─▶ confusion matrix ─▶ accuracy; precision, recall and F1 per label; their macro means

Memory grows with the number of different labels, which is bounded.
"""

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

MAX_LABELS: Final = 1000
_AVERAGED: Final = ("precision", "recall", "f1")


class TooManyLabels(ValueError):
    """A classification has more than `MAX_LABELS` labels."""


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """The metrics of one label. `support` is the number of items that have it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(slots=True)
class Classification:
    """The counts of all pairs of an expected and a predicted label."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _labels: set[str] = field(default_factory=set)

    def add(self, expected: str, predicted: str) -> None:
        """Count an item. Raises: TooManyLabels."""
        self._labels.update((expected, predicted))
        if len(self._labels) > MAX_LABELS:
            raise TooManyLabels(f"A classification has at most {MAX_LABELS} labels.")
        self.counts[expected, predicted] += 1

    @property
    def labels(self) -> list[str]:
        return sorted(self._labels)

    @property
    def accuracy(self) -> float:
        """Return the share of the items whose label was predicted; 0 without items."""
        return _share(sum(self.counts[label, label] for label in self._labels), self.counts.total())

    def of_label(self, label: str) -> LabelMetrics:
        """Return the metrics of one label; what has no value, such as the precision of no prediction, is 0."""
        hits = self.counts[label, label]
        support = sum(self.counts[label, other] for other in self._labels)
        predicted = sum(self.counts[other, label] for other in self._labels)
        f1 = _share(2 * hits, support + predicted)
        return LabelMetrics(_share(hits, predicted), _share(hits, support), f1, support)

    def summary(self) -> dict[str, Any]:
        """Return all metrics as JSON. The rows of the matrix are expected labels, its columns predicted ones."""
        labels = self.labels
        metrics = {label: asdict(self.of_label(label)) for label in labels}
        matrix = [[self.counts[expected, predicted] for predicted in labels] for expected in labels]
        return {
            "accuracy": self.accuracy,
            **{f"macro_{name}": _mean([metrics[label][name] for label in labels]) for name in _AVERAGED},
            "labels": metrics,
            "confusion_matrix": {"labels": labels, "counts": matrix},
        }


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
