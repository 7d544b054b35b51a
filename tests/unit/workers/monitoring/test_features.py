"""The features of a sample: stored and read again, and compared with those of another."""

from collections import Counter

import numpy as np
import pytest

from jobs.monitoring.monitors import MIN_TEXTS
from workers.monitoring.features import Features, compare
from workers.monitoring.texts import TextFeatures

SEEDS = 20


def features(texts: list[TextFeatures], *, seed: int = 0, shift: float = 0.0) -> Features:
    generator = np.random.default_rng(seed)
    return Features.of(texts, list(generator.normal(shift, 1.0, (len(texts), 8))))


def texts_of(*languages: str | None, score: float | None = None) -> list[TextFeatures]:
    return [TextFeatures(40 + 3 * (number % 20), language, None, score) for number, language in enumerate(languages)]


def drifts(baseline: Features, current: Features) -> dict[str, bool]:
    return {row["name"]: row["is_drift"] for row in compare(baseline, current)}


def test_stored_features_are_those_that_were_encoded() -> None:
    stored = features([*texts_of(*["en"] * 60, None, score=0.5), TextFeatures(7)])

    decoded = Features.decode(stored.encode())

    assert decoded.embedding == pytest.approx(stored.embedding, abs=1e-6)
    assert decoded.length.tolist() == stored.length.tolist()
    assert decoded.language.tolist() == [*["en"] * 60, "", ""]
    assert decoded.output_score.tolist() == [0.5] * 61
    assert decoded.retrieval_score.tolist() == []


def test_same_texts_have_no_distance() -> None:
    sample = features(texts_of(*["en"] * 80, *["de"] * 20))

    rows = compare(sample, sample)

    assert [row["name"] for row in rows] == ["embedding", "length", "language"]
    assert [row["value"] for row in rows] == pytest.approx([0, 0, 0], abs=1e-6)
    assert not any(row["is_drift"] for row in rows)


def test_each_feature_that_moves_is_found_and_no_other() -> None:
    mixed = texts_of(*["en"] * 80, *["de"] * 20, score=0.5)
    baseline = features(mixed)

    assert drifts(baseline, features(mixed, seed=1, shift=0.8)) == {
        "embedding": True, "length": False, "language": False, "output_score": False,
    }  # fmt: skip
    longer = [TextFeatures(text.length + 40, text.language, None, text.output_score) for text in mixed]
    assert [name for name, moved in drifts(baseline, features(longer)).items() if moved] == ["length"]
    german = texts_of(*["en"] * 50, *["de"] * 50, score=0.5)
    assert [name for name, moved in drifts(baseline, features(german)).items() if moved] == ["language"]
    worse = texts_of(*["en"] * 80, *["de"] * 20, score=-0.5)
    assert [name for name, moved in drifts(baseline, features(worse)).items() if moved] == ["output_score"]


def test_languages_that_the_baseline_lacks_count_together() -> None:
    baseline = features(texts_of(*["en"] * 100))

    distances = [
        next(row["value"] for row in compare(baseline, features(texts_of(*languages))) if row["name"] == "language")
        for languages in (["en"] * 70 + ["fr"] * 30, ["en"] * 70 + ["fr", "it", "pt"] * 10)
    ]

    assert distances[0] == distances[1] > 0


def test_score_of_texts_below_the_minimum_is_left_out() -> None:
    rated = texts_of(*["en"] * (MIN_TEXTS - 1), score=1.0)

    names = drifts(features([*rated, TextFeatures(50)] * 2), features([*rated, TextFeatures(50)]))

    assert "output_score" not in names


def test_texts_of_equal_length_are_a_single_class() -> None:
    same = features([TextFeatures(40)] * 60)

    assert drifts(same, same)["length"] is False
    assert drifts(same, features([TextFeatures(41)] * 60))["length"] is True


@pytest.mark.verify
def test_20_seeds_raise_alarms_with_drift_alone() -> None:
    """Languages, and the scores of searches and of feedback, as they come without drift and with a planted one."""
    alarms, detections = Counter[str](), Counter[str]()
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        baseline = scored(generator)
        alarms.update(name for name, is_drift in drifts(baseline, scored(generator)).items() if is_drift)
        detections.update(
            name for name, is_drift in drifts(baseline, scored(generator, planted=True)).items() if is_drift
        )

    print(f"of {SEEDS} seeds: false alarms {dict(alarms)}, planted drifts found {dict(detections)}")
    assert not alarms
    assert detections == dict.fromkeys(("language", "retrieval_score", "output_score"), SEEDS)


def scored(generator: np.random.Generator, *, planted: bool = False) -> Features:
    """Return the features of 400 texts of one distribution, or of the same one with a planted drift."""
    shares = [0.78, 0.1, 0.06, 0.04, 0.02] if not planted else [0.58, 0.1, 0.26, 0.04, 0.02]
    ratings = [0.2, 0.1, 0.7] if not planted else [0.4, 0.1, 0.5]
    languages = generator.choice(["en", "de", "fr", "es", ""], 400, p=shares)
    retrieval = generator.beta(6, 2, 400) - (0.1 if planted else 0.0)
    output = generator.choice([-1.0, 0.0, 1.0], 400, p=ratings)
    lengths = generator.gamma(2.0, 80.0, 400).astype(int)
    texts = [
        TextFeatures(int(length), str(language) or None, float(first), float(second))
        for length, language, first, second in zip(lengths, languages, retrieval, output, strict=True)
    ]
    return Features.of(texts, [np.zeros(1)])  # too few embeddings to be compared
