"""Metrics of classifications, against scikit-learn on random labels."""

import random

import pytest

from jobs.evals.classification import MAX_LABELS, Classification, TooManyLabels


def counted(pairs: list[tuple[str, str]]) -> Classification:
    classification = Classification()
    for expected, predicted in pairs:
        classification.add(expected, predicted)
    return classification


@pytest.mark.parametrize("seed", range(5))
def test_the_metrics_are_those_of_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(seed)
    pairs = [(draw.choice("abcd"), draw.choice("abce")) for _ in range(200)]
    expected, predicted = zip(*pairs, strict=True)
    classification = counted(pairs)
    summary = classification.summary()

    assert summary["accuracy"] == pytest.approx(sklearn.accuracy_score(expected, predicted))
    theirs = sklearn.precision_recall_fscore_support(expected, predicted, labels=classification.labels, zero_division=0)
    for n, label in enumerate(classification.labels):
        ours = classification.of_label(label)
        values = (ours.precision, ours.recall, ours.f1, ours.support)
        assert values == pytest.approx(tuple(column[n] for column in theirs))
    means = sklearn.precision_recall_fscore_support(expected, predicted, average="macro", zero_division=0)[:3]
    assert [summary[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(list(means))
    matrix = sklearn.confusion_matrix(expected, predicted, labels=classification.labels)
    assert summary["confusion_matrix"] == {"labels": list("abcde"), "counts": matrix.tolist()}


def test_without_items_every_metric_is_0() -> None:
    assert Classification().summary() == {
        "accuracy": 0.0, "macro_precision": 0.0, "macro_recall": 0.0, "macro_f1": 0.0, "labels": {},
        "confusion_matrix": {"labels": [], "counts": []},
    }  # fmt: skip


def test_labels_without_end_are_refused() -> None:
    with pytest.raises(TooManyLabels):
        counted([(str(n), str(n)) for n in range(MAX_LABELS + 1)])
