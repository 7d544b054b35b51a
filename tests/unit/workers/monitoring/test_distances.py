"""Distances against those of other libraries, and the rates of their alarms with real texts, with and without drift."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from examples.corpus import docstrings
from workers.monitoring.distances import Array, energy_distance, energy_limit, psi, psi_limit

SEEDS = 20


def test_energy_distance_of_numbers_is_that_of_scipy() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=700), generator.normal(0.4, 1.5, size=501)

    assert energy_distance(first, second) == pytest.approx(stats.energy_distance(first, second))
    assert energy_distance(first, first) == 0.0


def test_energy_distance_of_points_is_its_definition() -> None:
    generator = np.random.default_rng(4)
    first, second = generator.normal(size=(300, 8)), generator.normal(0.3, size=(270, 8))

    square = 2 * cdist(first, second).mean() - cdist(first, first).mean() - cdist(second, second).mean()

    assert energy_distance(first, second) == pytest.approx(square**0.5)


def test_energy_limit_of_numbers_is_passed_by_a_thousandth_of_draws() -> None:
    generator = np.random.default_rng(5)
    baseline = generator.gamma(2.0, size=150)
    limit = energy_limit(baseline, 100)

    drawn = [energy_distance(generator.choice(baseline, 150), generator.choice(baseline, 100)) for _ in range(4_000)]

    assert limit == energy_limit(baseline, 100)
    assert np.quantile(drawn, 0.995) < limit < max(drawn) * 1.25


def test_psi_of_an_example_by_hand() -> None:
    before, after = np.array([50_000.0, 30_000.0, 20_000.0]), np.array([40_000.0, 30_000.0, 30_000.0])

    expected = 0.1 * np.log(5 / 4) + 0.1 * np.log(3 / 2)

    assert psi(before, after) == pytest.approx(expected, rel=1e-3)
    assert psi(before, before) == 0.0
    assert np.isfinite(psi(np.array([10.0, 0.0]), np.array([0.0, 10.0])))


def test_psi_limit_falls_with_the_size_of_the_samples() -> None:
    limits = [psi_limit(np.full(10, size / 10), size) for size in (100, 1_000, 10_000)]

    # without drift the index times nm / (n + m) follows a chi-squared distribution (Yurdakul, 2018)
    expected = [stats.chi2.ppf(0.999, 9) * 2 / size for size in (100, 1_000, 10_000)]
    assert limits == pytest.approx(expected, rel=0.25)


@pytest.fixture(scope="module")
def pool() -> tuple[Array, Array]:
    """Return embeddings of docstrings of Python's library: those that tell of networks, and all others."""
    texts = [docstring.text for docstring in docstrings(2_000)]
    words = ("socket", "http", "server", "mail", "url", "connection", "network", "message")
    is_network = np.array([any(word in text.lower() for word in words) for text in texts])
    frequencies = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(texts)
    vectors = normalize(TruncatedSVD(50, random_state=0).fit_transform(frequencies))
    return vectors[is_network], vectors[~is_network]


def test_20_seeds_of_embeddings_raise_alarms_with_drift_alone(pool: tuple[Array, Array]) -> None:
    network, others = pool
    alarms, detections = [], []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        rows = generator.permutation(len(others))
        baseline, current = others[rows[:300]], others[rows[300:600]]
        planted = np.concatenate([current[:180], network[generator.permutation(len(network))[:120]]])
        limit = energy_limit(baseline, 300)
        alarms.append(energy_distance(baseline, current) > limit)
        detections.append(energy_distance(baseline, planted) > limit)

    print(f"embeddings: {sum(alarms)} of {SEEDS} false alarms, {sum(detections)} of {SEEDS} planted drifts found")
    assert (sum(alarms), sum(detections)) == (0, SEEDS)


def test_20_seeds_of_lengths_raise_alarms_with_drift_alone() -> None:
    lengths = np.array([len(text.text) for text in docstrings(2_000)], dtype=float)
    edges = np.unique(np.quantile(lengths, np.linspace(0.1, 0.9, 9)))

    def count(values: Array) -> Array:
        return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).astype(float)

    alarms, detections = [], []
    for seed in range(SEEDS):
        rows = np.random.default_rng(seed).permutation(len(lengths))
        baseline, current = count(lengths[rows[:400]]), lengths[rows[400:800]]
        limit = psi_limit(baseline, 400)
        alarms.append(psi(baseline, count(current)) > limit)
        detections.append(psi(baseline, count(current * 1.3)) > limit)

    print(f"lengths: {sum(alarms)} of {SEEDS} false alarms, {sum(detections)} of {SEEDS} planted drifts found")
    assert (sum(alarms), sum(detections)) == (0, SEEDS)
