"""Metrics of a classification: expected and predicted labels, counted as they come.

    add(expected, predicted) … ─▶ confusion matrix ─▶ accuracy; precision, recall and F1 per label; their macro means

The labels are named before the first item, so that memory is bounded whatever a model answers. A prediction that is
none of them is wrong for the label that was expected.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

_AVERAGED: Final = ("precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """The metrics of one label. `support` is the number of items that have it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The counts of all pairs of an expected and a predicted label; None stands for any other prediction."""

    labels: Sequence[str]
    _counts: Counter[tuple[str, str | None]] = field(default_factory=Counter)

    def add(self, expected: str, predicted: str | None) -> None:
        """Count an item."""
        self._counts[expected, predicted] += 1

    @property
    def accuracy(self) -> float:
        """Return the share of the items whose label was predicted; 0 without items."""
        return _share(sum(self._counts[label, label] for label in self.labels), self._counts.total())

    def of_label(self, label: str) -> LabelMetrics:
        """Return the metrics of one label; what has no value, such as the precision of no prediction, is 0."""
        hits = self._counts[label, label]
        support = sum(self._row(label)) + self._counts[label, None]
        predicted = sum(self._counts[expected, label] for expected in self.labels)
        f1 = _share(2 * hits, support + predicted)
        return LabelMetrics(_share(hits, predicted), _share(hits, support), f1, support)

    def summary(self) -> dict[str, Any]:
        """Return all metrics as JSON.

        The rows of the matrix are expected labels, its columns predicted ones; `other` counts by expected label the
        predictions that are no label.
        """
        metrics = {label: asdict(self.of_label(label)) for label in self.labels}
        return {
            "accuracy": self.accuracy,
            **{f"macro_{name}": statistics.fmean(row[name] for row in metrics.values()) for name in _AVERAGED},
            "labels": metrics,
            "confusion_matrix": {
                "labels": list(self.labels),
                "counts": [self._row(label) for label in self.labels],
                "other": [self._counts[label, None] for label in self.labels],
            },
        }

    def _row(self, expected: str) -> list[int]:
        return [self._counts[expected, predicted] for predicted in self.labels]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
