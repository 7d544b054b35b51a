"""Decide whether a mean of paired differences is more than chance: pure functions of a difference for each item.

    interval        where the mean lies                     p_value         how likely so large a mean is by chance
    correct         p-values of several tests together      items_needed    how many items would decide
                                                            items_to_find   how many find a difference of a given size

The methods were chosen by measurement, which `tests/simulation/comparisons.py` repeats. Where differences repeat, 95 %
intervals of the studentised bootstrap held the true difference in 82 to 95 % of 250 pairs of runs with 10 to 20 items;
those of BCa did in 88 % at 10 items, also where all differences are distinct.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, Final

LEVEL: Final = 0.95
#: The share of mistakes that is accepted.
ALPHA: Final = 1 - LEVEL
ROUNDS: Final = 2000
#: Random changes of signs. The smallest p-value, 1 in 10,000, is small enough where 50 of them are corrected.
FLIPS: Final = 9_999
#: The probability with which `items_needed` items find a difference.
POWER: Final = 0.8
#: Numbers that resamples hold at once.
_MAX_VALUES: Final = 1_000_000
_MIN_ITEMS: Final = 10  # items whose resamples are too much alike
_DIGITS: Final = 9  # of differences in units of the largest one; further digits are errors of rounding
_MAX_NEEDED: Final = 1_000_000
_quantile: Final = NormalDist().inv_cdf


def scale(differences: Sequence[float]) -> tuple[Any, float]:
    """Return the differences in units of the largest one, and that unit; 1 where none differs from 0."""
    import numpy as np

    values = np.asarray(differences, dtype=float)
    unit = float(np.abs(values).max()) or 1.0
    return np.round(values / unit, _DIGITS), unit


def interval(differences: Sequence[float], alpha: float = ALPHA) -> tuple[float, float]:
    """Return an interval that misses the mean of at least one difference with the probability `alpha`.

    The same differences get the same interval.

    Where more than half of them are distinct, this is the studentised bootstrap (Efron, Tibshirani: An Introduction to
    the Bootstrap, 1993, §12.5). Otherwise, and for less than 10, it is Wald's interval with one more item that became
    better and one that became worse, each by the largest difference: for 0/1 scores the adjusted interval of Bonett and
    Price (Journal of Educational and Behavioral Statistics 37, 2012).
    """
    import numpy as np

    values, unit = scale(differences)
    is_distinct = len(values) >= _MIN_ITEMS and 2 * len(np.unique(values)) > len(values)
    low, high = (_studentised_interval if is_distinct else _adjusted_interval)(values, alpha)
    return low * unit, high * unit


def _adjusted_interval(values: Any, alpha: float) -> tuple[float, float]:
    count = len(values) + 2
    mean = float(values.sum()) / count
    variance = (float((values**2).sum()) + 2) / count - mean**2
    margin = _quantile(1 - alpha / 2) * math.sqrt(variance / count)
    return max(mean - margin, -1.0), min(mean + margin, 1.0)


def _studentised_interval(values: Any, alpha: float) -> tuple[float, float]:
    import numpy as np

    mean, deviation = values.mean(), values.std()
    with np.errstate(divide="ignore"):  # a resample of equal values is infinitely far away
        distances = np.concatenate(
            [(drawn.mean(axis=1) - mean) / drawn.std(axis=1) for drawn in _resamples(values, ROUNDS, seed=0)]
        )
    low, high = _percentiles(distances, alpha)
    return float(mean - high * deviation), float(mean - low * deviation)


def gap_interval(highest: Sequence[float], lowest: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the difference of the means of two groups, by a bootstrap of each: its percentiles."""
    return _percentiles(_resampled_means(highest, seed=1) - _resampled_means(lowest, seed=0))


def _resampled_means(values: Sequence[float], seed: int) -> Any:
    import numpy as np

    return np.concatenate([drawn.mean(axis=1) for drawn in _resamples(np.asarray(values), ROUNDS, seed)])


def _percentiles(values: Any, alpha: float = ALPHA) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def _resamples(values: Any, rounds: int, seed: int) -> Iterator[Any]:
    """Yield resamples of `values` in blocks, a row each."""
    import numpy as np

    generator = np.random.default_rng(seed)
    at_once = max(1, _MAX_VALUES // len(values))
    for start in range(0, rounds, at_once):
        yield values[generator.integers(0, len(values), (min(at_once, rounds - start), len(values)))]


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign-flip test of the mean of differences.

    If the runs are alike, each difference is as likely with the other sign: the p-value is the share of random signs
    with a mean at least as far from 0 (Fisher: The Design of Experiments, 1935, §21; the observed signs count as one
    of them, Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010). Where all items
    that changed did so by the same amount, as with 0/1 scores, this is McNemar's exact test and computed as such.
    """
    import numpy as np

    values, _ = scale(differences)
    values = values[values != 0]
    if len(np.unique(np.abs(values))) <= 1:
        return mcnemar(int((values > 0).sum()), int((values < 0).sum()))
    octets = np.pad(values, (0, -len(values) % 8)).reshape(-1, 8)
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1
    sums = octets @ signs.T  # of each eight differences, for each choice of their signs
    generator, positions = np.random.default_rng(0), np.arange(len(octets))
    least, extreme = abs(values.sum()) - 10.0**-_DIGITS, 0
    at_once = max(1, _MAX_VALUES // len(octets))
    for start in range(0, FLIPS, at_once):
        chosen = generator.integers(0, 256, (min(at_once, FLIPS - start), len(octets)), np.uint8)
        extreme += int((np.abs(sums[positions, chosen].sum(axis=1)) >= least).sum())
    return (extreme + 1) / (FLIPS + 1)


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, which is the sign test of the items that changed."""
    changed, fewer = better + worse, min(better, worse)
    if not changed:
        return 1.0
    logs = (math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(math.exp(log - changed * math.log(2)) for log in logs))


def correct(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests so that one below 0.05 among them is chance in 5 % of cases at most.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def items_needed(differences: Sequence[float], tests: int, alpha: float = ALPHA) -> int | None:
    """Return an estimate of how many items find such a difference with the probability `POWER`, in one of `tests`.

    None where the mean is 0, or would need more than a million items.
    """
    values, _ = scale(differences)
    return items_to_find(float(values.mean()), float(values.std()), alpha / tests, POWER)


def items_to_find(mean: float, deviation: float, alpha: float, power: float) -> int | None:
    """Return how many items find a mean of differences with the probability `power`.

    None where the mean is 0, or would need more than a million items. The formula is that of a paired test by the
    normal distribution: ((z(1 - alpha / 2) + z(power)) · deviation / mean)² (Cohen: Statistical Power Analysis, 1988).
    """
    if not mean:
        return None
    needed = ((_quantile(1 - alpha / 2) + _quantile(power)) * deviation / mean) ** 2
    return math.ceil(needed) if needed <= _MAX_NEEDED else None
