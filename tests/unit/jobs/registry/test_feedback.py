"""Intervals of shares and of their differences, against the examples in the paper that compares the methods.

Newcombe: Two-sided confidence intervals for the single proportion, and for the difference between independent
proportions, Statistics in Medicine 17, 1998, pages 857 and 873.
"""

import pytest

from jobs.registry.feedback import ModelFeedback


def of(positive: int, count: int) -> ModelFeedback:
    return ModelFeedback("m", count, 0.0, positive)


@pytest.mark.parametrize(
    ("positive", "count", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_share_has_the_interval_of_wilson(positive: int, count: int, interval: tuple[float, float]) -> None:
    assert of(positive, count).interval == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
    ],
)
def test_difference_has_the_interval_of_newcombe(
    first: tuple[int, int], second: tuple[int, int], interval: tuple[float, float]
) -> None:
    difference = of(*first).difference(of(*second))

    assert (difference.low, difference.high) == pytest.approx(interval, abs=1e-4)
    assert difference.value == pytest.approx(first[0] / first[1] - second[0] / second[1])
