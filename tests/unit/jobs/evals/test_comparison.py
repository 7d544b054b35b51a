"""The comparison of two runs: pairs, intervals and tests against values that are known otherwise."""

import math
from typing import Any

import pytest

from jobs.evals import comparison
from jobs.evals.comparison import Pair


def item(n: int, score: float | None, **fields: Any) -> dict[str, Any]:
    status = "error" if score is None else "pass" if score >= 0.5 else "fail"
    results = [{"name": "score", "score": score, "passed": status == "pass"}]
    return {
        "id": f"outputitem_{n}",
        "datasource_item": {"n": n, **fields},
        "status": status,
        "results": results,
        "sample": {"output": []},
    }


def test_items_are_paired_by_what_they_are() -> None:
    first = [item(1, 0.0), {**item(2, 1.0), "datasource_item": {"a": 1, "n": 2}}, item(3, 1.0)]
    second = [{**item(2, 0.0), "datasource_item": {"n": 2, "a": 1}}, item(1, 1.0), item(4, 1.0)]

    pairing = comparison.pair_items(first, second)

    assert [pair.first["datasource_item"]["n"] for pair in pairing.pairs] == [1, 2]
    assert all(pair.first["datasource_item"] == pair.second["datasource_item"] for pair in pairing.pairs)
    assert (pairing.only_first, pairing.only_second) == (["outputitem_3"], ["outputitem_4"])


def test_samples_of_one_item_are_paired_in_their_order() -> None:
    first, second = [item(1, 0.0), item(1, 0.1)], [item(1, 0.2), item(1, 0.3), item(1, 0.4)]

    pairing = comparison.pair_items(first, second)

    scores = [
        (comparison.score_of(pair.first, "score"), comparison.score_of(pair.second, "score")) for pair in pairing.pairs
    ]
    assert scores == [(0.0, 0.2), (0.1, 0.3)]
    assert (pairing.only_first, pairing.only_second) == ([], ["outputitem_1"])


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 2, 2 * (1 + 12 + 66) / 2**12), (2, 10, 2 * (1 + 12 + 66) / 2**12), (6, 0, 2 / 64)],
)
def test_p_value_is_that_of_the_binomial_distribution(better: int, worse: int, expected: float) -> None:
    assert comparison.p_value(better, worse) == pytest.approx(expected, rel=1e-9)


def test_p_value_of_many_items_is_near_the_normal_distribution() -> None:
    expected = math.erfc((abs(20_400 - 19_600) - 1) / math.sqrt(40_000) / math.sqrt(2))

    assert comparison.p_value(20_400, 19_600) == pytest.approx(expected, rel=0.01)


def test_interval_is_that_of_the_normal_distribution_where_values_are_many() -> None:
    values = [1.0] * 600 + [0.0] * 400
    error = 1.96 * math.sqrt(0.6 * 0.4 / 1000)

    low, high = comparison.bootstrap(values)

    assert (low, high) == (pytest.approx(0.6 - error, abs=0.005), pytest.approx(0.6 + error, abs=0.005))
    assert comparison.bootstrap(values) == (low, high)
    assert comparison.bootstrap([0.25]) == (0.25, 0.25)


def test_interval_of_many_distinct_values_takes_bounded_memory() -> None:
    low, high = comparison.bootstrap([n / 20_000 for n in range(20_000)], rounds=200)

    assert low < 0.5 < high
    assert high - low < 0.02


def test_errored_items_are_left_out_of_a_comparison() -> None:
    pairs = [Pair(item(1, None), item(1, 1.0)), Pair(item(2, 0.2), item(2, 0.9)), Pair(item(3, 0.8), item(3, 0.7))]

    overall, score = comparison.compare(pairs)

    assert (overall.criterion, overall.items, overall.first, overall.second) == (comparison.OVERALL, 2, 0.5, 1.0)
    assert (overall.better, overall.worse) == (1, 0)
    assert (score.criterion, score.items, score.better, score.worse) == ("score", 2, 1, 1)
    assert score.difference == pytest.approx(0.3)
    assert not score.is_significant
    assert comparison.compare([Pair(item(1, None), item(1, None))]) == []


def test_worst_regressions_come_first() -> None:
    pairs = [Pair(item(n, 0.8), item(n, second)) for n, second in ((1, 0.7), (2, 0.1), (3, 0.9))]

    assert [pair.first["datasource_item"]["n"] for pair in comparison.regressions(pairs, 5)] == [2, 1]
    assert len(comparison.regressions(pairs, 1)) == 1


def test_slices_by_a_field_of_the_item() -> None:
    pairs = [
        Pair(item(n, 1.0, about={"language": language}), item(n, 1.0)) for n, language in enumerate(["de", "en", "de"])
    ]
    pairs.append(Pair(item(9, 1.0), item(9, 1.0)))

    by_value = comparison.slices(pairs, "item.about.language")

    assert {value: len(group) for value, group in by_value.items()} == {"(none)": 1, "de": 2, "en": 1}


def test_gap_is_between_the_best_and_the_worst_slice_of_each_run() -> None:
    shares = {"de": (0.9, 0.5), "en": (0.6, 0.5), "fr": (0.3, 0.4)}
    groups = {
        language: [Pair(item(n, float(n < first * 400)), item(n, float(n < second * 400))) for n in range(400)]
        for language, (first, second) in shares.items()
    }
    error = 1.96 * math.sqrt((0.9 * 0.1 + 0.3 * 0.7) / 400)

    wide, narrow = comparison.gaps(groups)

    assert (wide.criterion, wide.run, wide.highest, wide.lowest) == ("score", "first", "de", "fr")
    assert wide.gap == pytest.approx(0.6)
    assert (wide.low, wide.high) == (pytest.approx(0.6 - error, abs=0.01), pytest.approx(0.6 + error, abs=0.01))
    assert (narrow.run, narrow.lowest) == ("second", "fr")
    assert narrow.gap == pytest.approx(0.1)


def test_one_slice_with_scores_has_no_gap() -> None:
    assert comparison.gaps({"de": [Pair(item(1, 1.0), item(1, 0.0))], "en": [Pair(item(2, None), item(2, None))]}) == []
