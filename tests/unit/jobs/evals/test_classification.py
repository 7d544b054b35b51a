"""Metrics of classifications, against scikit-learn on random labels."""

import random
from collections.abc import Sequence

import pytest

from jobs.evals.classification import Classification

LABELS = ("a", "b", "c", "d", "e")


def counted(pairs: Sequence[tuple[str, str | None]]) -> Classification:
    classification = Classification(LABELS)
    for expected, predicted in pairs:
        classification.add(expected, predicted)
    return classification


@pytest.mark.parametrize("predictions", ["abce", "abcexy"])
@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_are_those_of_scikit_learn(seed: int, predictions: str) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(seed)
    expected, predicted = [draw.choice("abcd") for _ in range(200)], [draw.choice(predictions) for _ in range(200)]
    known = [label if label in LABELS else None for label in predicted]
    classification = counted(list(zip(expected, known, strict=True)))
    summary = classification.summary()

    assert summary["accuracy"] == pytest.approx(sklearn.accuracy_score(expected, predicted))
    options = {"labels": LABELS, "zero_division": 0}
    theirs = sklearn.precision_recall_fscore_support(expected, predicted, **options)
    for n, label in enumerate(LABELS):
        ours = classification.of_label(label)
        values = (ours.precision, ours.recall, ours.f1, ours.support)
        assert values == pytest.approx(tuple(column[n] for column in theirs))
    means = sklearn.precision_recall_fscore_support(expected, predicted, average="macro", **options)[:3]
    assert [summary[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(list(means))
    matrix = sklearn.confusion_matrix(expected, predicted, labels=LABELS)
    others = [sum(pair == (label, None) for pair in zip(expected, known, strict=True)) for label in LABELS]
    assert summary["confusion_matrix"] == {"labels": list(LABELS), "counts": matrix.tolist(), "other": others}


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_that_of_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(seed)
    expected = [draw.choice("aab") for _ in range(50)]
    predicted = [draw.choice((label, *"abc")) for label in expected]

    agreement = counted(list(zip(expected, predicted, strict=True))).agreement()

    assert agreement == {
        "items": 50,
        "share": pytest.approx(sklearn.accuracy_score(expected, predicted)),
        "kappa": pytest.approx(sklearn.cohen_kappa_score(expected, predicted)),
    }


def test_agreement_without_items_or_with_single_label_has_no_kappa() -> None:
    assert counted([]).agreement() == {"items": 0, "share": None, "kappa": None}
    assert counted([("a", "a")] * 3).agreement() == {"items": 3, "share": 1.0, "kappa": None}


def test_without_items_every_metric_is_0() -> None:
    summary = Classification(("a",)).summary()

    assert [summary[name] for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1")] == [0.0] * 4
    assert summary["labels"] == {"a": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}}
    assert summary["confusion_matrix"] == {"labels": ["a"], "counts": [[0]], "other": [0]}
