"""Intervals, tests and corrections against values that are known otherwise."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import permutation_test

from jobs.evals import significance


def differences_of(better: int, worse: int, same: int) -> list[float]:
    return [1.0] * better + [-1.0] * worse + [0.0] * same


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 2, 2 * (1 + 12 + 66) / 2**12), (2, 10, 2 * (1 + 12 + 66) / 2**12), (6, 0, 2 / 64)],
)
def test_p_value_of_passes_is_that_of_the_binomial_distribution(better: int, worse: int, expected: float) -> None:
    assert significance.mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)
    assert significance.p_value(differences_of(better, worse, 3)) == pytest.approx(expected, rel=1e-9)


def test_p_value_of_many_items_is_near_the_normal_distribution() -> None:
    expected = math.erfc((abs(20_400 - 19_600) - 1) / math.sqrt(40_000) / math.sqrt(2))

    assert significance.mcnemar(20_400, 19_600) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("values", [(0.1, 0.4, -0.2, 0.5, 0.3), tuple(n / 7 - 1 for n in range(19)), (3.0, -1.0, 2.0)])
def test_p_value_of_scores_is_that_of_all_changes_of_signs(values: Sequence[float]) -> None:
    other = np.zeros(len(values))
    whole = permutation_test((values, other), lambda a, b: np.mean(a - b), permutation_type="samples", rng=0)

    assert significance.p_value(values) == pytest.approx(whole.pvalue, abs=0.01)
    assert significance.p_value(values) == significance.p_value([-value for value in values])


def test_p_value_is_never_0_and_does_not_depend_on_the_unit() -> None:
    values = [0.5 + n / 100 for n in range(60)]

    assert significance.p_value(values) == 1 / (significance.FLIPS + 1)
    assert significance.p_value([1e300 * value for value in values]) == 1 / (significance.FLIPS + 1)


def test_rounding_makes_no_difference() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 are not the same number."""
    values = [0.3 - 0.2, 0.2 - 0.1, 0.8 - 0.7] * 4

    assert significance.p_value(values) == significance.mcnemar(12, 0)
    assert significance.interval(values) == pytest.approx(significance.interval([0.1] * 12))


def test_interval_of_passes_is_that_of_bonett_and_price() -> None:
    """21 items: 1 and 7 changed. (7 + 1) / 23 - (1 + 1) / 23, and its standard error."""
    p12, p21 = 8 / 23, 2 / 23
    margin = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 23)

    low, high = significance.interval(differences_of(7, 1, 13))

    assert (low, high) == (pytest.approx(p12 - p21 - margin), pytest.approx(p12 - p21 + margin))


def test_interval_of_normal_scores_matches_student_t_distribution() -> None:
    values = np.random.default_rng(5).normal(0.3, 1.0, 400)
    margin = 1.966 * values.std(ddof=1) / 20  # of 399 degrees of freedom

    low, high = significance.interval(values)

    assert (low, high) == (
        pytest.approx(values.mean() - margin, abs=0.01),
        pytest.approx(values.mean() + margin, abs=0.01),
    )
    assert significance.interval(values) == (low, high)


@pytest.mark.parametrize("values", [[0.0] * 30, [1.0] * 30, [0.25] * 30, [1.0]])
def test_interval_of_equal_differences_has_a_width(values: Sequence[float]) -> None:
    low, high = significance.interval(values)

    assert low < values[0] <= high <= 1


def test_interval_of_many_distinct_values_takes_bounded_memory() -> None:
    low, high = significance.interval([n / 20_000 for n in range(20_000)])

    assert low < 0.5 < high
    assert high - low < 0.02


def test_correction_is_that_of_holm() -> None:
    """Wikipedia's example of the method, and its order."""
    assert significance.correct([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.correct([0.7, 0.6]) == [1.0, 1.0]
    assert significance.correct([0.04]) == [0.04]


def test_items_needed_are_those_of_a_paired_test() -> None:
    """For half a deviation, a power of 0.8 and a two-sided 0.05, tables have 32 (by the normal distribution)."""
    values = [1.5, -0.5] * 10

    assert significance.items_needed(values, 1) == 32
    assert significance.items_needed(values, 10) == math.ceil((2.807034 + 0.841621) ** 2 / 0.25)
    assert significance.items_needed([0.0, 1.0, -1.0], 1) is None
    assert significance.items_needed([1.0, -1.0] * 50_000 + [1.0], 1) is None
