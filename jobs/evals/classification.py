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
        hits, support, predicted = self._counts[label, label], self._support(label), self._predictions(label)
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

    def agreement(self) -> dict[str, Any]:
        """Return how far expected and predicted labels agree, as JSON: the number of items, the share, and kappa.

        Kappa is 0 where they agree as often as by chance, and 1 where they always do; None where they cannot disagree
        (Cohen: A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20, 1960).
        """
        total = self._counts.total()
        chance = _share(sum(self._support(label) * self._predictions(label) for label in self.labels), total**2)
        kappa = (self.accuracy - chance) / (1 - chance) if total and chance < 1 else None
        return {"items": total, "share": self.accuracy if total else None, "kappa": kappa}

    def _support(self, label: str) -> int:
        return sum(self._row(label)) + self._counts[label, None]

    def _predictions(self, label: str) -> int:
        return sum(self._counts[expected, label] for expected in self.labels)

    def _row(self, expected: str) -> list[int]:
        return [self._counts[expected, predicted] for predicted in self.labels]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
