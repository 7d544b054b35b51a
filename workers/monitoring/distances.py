"""Distances between two samples of one feature, and the limits above which a distance is more than chance.

    energy_distance   of points, such as embeddings, or of numbers        energy_limit
    psi               the population stability index of counts             psi_limit

A limit comes from the bootstrap of the baseline against itself: two samples are drawn from the baseline with
replacement, as large as the two that are compared, and their distance is taken. The limit is what 99.9 % of these
distances stay below. Both samples are drawn: against the baseline as it is, one that is drawn from it lies too near.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ROUNDS: Final = 5_000
#: The share of the distances without drift that stay below a limit.
LEVEL: Final = 0.999
#: Rows of a matrix of distances, or rounds of the bootstrap, that are computed at once.
_AT_ONCE: Final = 250
#: Counted in each class beside what is there, so that a class without members has a logarithm.
_SMOOTHING: Final = 0.5


def energy_distance(first: Array, second: Array) -> float:
    """Return the energy distance of two samples, whose points are rows, or single numbers.

    This is the square root of 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely, Rizzo: Journal of Statistical Planning and
    Inference 143, 2013), for numbers the value of `scipy.stats.energy_distance`.
    """
    between, within = _mean_distance(first, second), _mean_distance(first, first) + _mean_distance(second, second)
    return float(np.sqrt(max(0.0, 2 * between - within)))


def energy_limit(baseline: Array, size: int) -> float:
    """Return the limit of the energy distance between a baseline and a sample of `size` points. It is always the same.

    With the distances D of the baseline's points and the difference d of the weights that two draws give to these,
    the square of the distance of the draws is -d'Dd: points are drawn 5,000 times, and distances computed once.
    """
    count = len(baseline)
    distances = np.concatenate(list(_distances(baseline, baseline)))
    generator, weights = np.random.default_rng(0), np.full(count, 1 / count)
    squares = []
    for _ in range(0, ROUNDS, _AT_ONCE):
        drawn = generator.multinomial(size, weights, _AT_ONCE) / size
        drawn -= generator.multinomial(count, weights, _AT_ONCE) / count
        squares.append(-np.einsum("ij,ij->i", drawn @ distances, drawn))
    return float(np.sqrt(max(0.0, float(np.quantile(np.concatenate(squares), LEVEL)))))


def psi(baseline: Array, counts: Array) -> float:
    """Return the population stability index of the counts of the same classes in two samples.

    It is the sum of (p - q) ln(p / q), p and q being the shares of a class (Siddiqi: Credit Risk Scorecards, 2006).
    """
    return float(_indexes(baseline, counts))


def psi_limit(baseline: Array, size: int) -> float:
    """Return the limit of the index between the counts of a baseline and those of a sample of `size`.

    It is always the same.
    """
    generator, shares = np.random.default_rng(0), _shares(baseline)
    draws = (generator.multinomial(number, shares, ROUNDS).astype(float) for number in (int(baseline.sum()), size))
    return float(np.quantile(_indexes(*draws), LEVEL))


def _indexes(first: Array, second: Array) -> Any:
    p, q = _shares(first), _shares(second)
    return ((p - q) * np.log(p / q)).sum(axis=-1)


def _shares(counts: Array) -> Array:
    smooth = counts + _SMOOTHING
    shares: Array = smooth / smooth.sum(axis=-1, keepdims=True)
    return shares


def _mean_distance(first: Array, second: Array) -> float:
    return float(sum(block.sum() for block in _distances(first, second))) / (len(first) * len(second))


def _distances(first: Array, second: Array) -> Iterator[Array]:
    """Yield the Euclidean distances of the points of `first`, some rows at a time, to those of `second`."""
    if first.ndim == 1:
        first, second = first[:, None], second[:, None]
    if first.shape[1] == 1:  # exact, where a product would round
        for start in range(0, len(first), _AT_ONCE):
            yield np.abs(first[start : start + _AT_ONCE] - second.T)
        return
    squares = (second**2).sum(axis=1)
    for start in range(0, len(first), _AT_ONCE):
        rows = first[start : start + _AT_ONCE]
        yield np.sqrt(np.maximum((rows**2).sum(axis=1)[:, None] + squares - 2 * (rows @ second.T), 0.0))
