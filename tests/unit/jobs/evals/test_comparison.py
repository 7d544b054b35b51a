"""The comparison of two runs: pairs, intervals and tests against values that are known otherwise."""

import math
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from jobs.evals import comparison
from jobs.evals.comparison import MAX_SLICES, MIN_ITEMS, NAMED, OVERALL, PairedComparison, Pairing


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


def scores_of(pairing: Pairing) -> list[tuple[float | None, float | None]]:
    return [(pair.first.score(1), pair.second.score(1)) for pair in pairing.pairs]


def paired(*scores: tuple[float | None, float | None]) -> Pairing:
    """Return the pairing of two runs with these scores of each item."""
    first, second = ([item(n, column) for n, column in enumerate(run)] for run in zip(*scores, strict=True))
    return comparison.pair_items(first, second)


def test_items_are_paired_by_content() -> None:
    first = [item(1, 0.0), {**item(2, 1.0), "datasource_item": {"a": 1, "n": 2}}, item(3, 1.0)]
    second = [item(1, 1.0), {**item(2, 0.0), "datasource_item": {"n": 2, "a": 1}}, item(4, 1.0)]

    pairing = comparison.pair_items(first, second)

    assert [(pair.first.id, pair.second.id) for pair in pairing.pairs] == [
        ("outputitem_1", "outputitem_1"),
        ("outputitem_2", "outputitem_2"),
    ]
    assert (pairing.criteria, scores_of(pairing)) == ([OVERALL, "score"], [(0.0, 1.0), (1.0, 0.0)])
    assert (pairing.only_first.ids, pairing.only_second.ids) == (["outputitem_3"], ["outputitem_4"])


def test_samples_of_same_item_are_paired_in_order() -> None:
    first, second = [item(1, 0.0), item(1, 0.1)], [item(1, 0.2), item(1, 0.3), item(1, 0.4)]

    pairing = comparison.pair_items(first, second)

    assert scores_of(pairing) == [(0.0, 0.2), (0.1, 0.3)]
    assert (pairing.only_first.ids, pairing.only_second.ids) == ([], ["outputitem_1"])


def test_an_error_is_no_score_of_0() -> None:
    failed = item(1, 0.0)
    failed["results"][0]["error"] = {"code": "python_grader_runtime_error", "message": "ValueError"}

    assert scores_of(comparison.pair_items([item(1, 1.0)], [failed])) == [(1.0, None)]


def test_items_without_a_partner_are_counted_and_the_first_named() -> None:
    pairing = comparison.pair_items([item(n, 1.0) for n in range(NAMED + 5)], [])

    assert (pairing.only_first.count, len(pairing.only_first.ids)) == (NAMED + 5, NAMED)
    assert pairing.only_first.ids[0] == "outputitem_0"


def test_criterion_missing_in_other_run_has_no_score() -> None:
    other = {"name": "other", "score": 1.0, "passed": True}
    first, second = item(1, 0.5), item(1, 0.5)
    second["results"].append(other)

    pairing = comparison.pair_items([first], [second])

    (pair,) = pairing.pairs
    assert (pairing.criteria, pair.first.score(2), pair.second.score(2)) == ([OVERALL, "score", "other"], None, 1.0)
    assert [row.criterion for row in comparison.compare(pairing.criteria, pairing.pairs)] == [OVERALL, "score"]


def test_item_texts_are_not_retained_in_memory() -> None:
    count, text = 500, "x" * 20_000

    def run() -> Iterator[dict[str, Any]]:
        for n in range(count):
            yield {**item(n, n / count, text=f"{n} {text}"), "sample": {"output": [{"content": f"{n} {text}"}]}}

    tracemalloc.start()
    try:
        pairing = comparison.pair_items(run(), run())
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(pairing.pairs) == count
    assert held < count * 1000  # bytes
    assert peak < held + 20 * len(text)


@pytest.mark.parametrize(("p_value", "text"), [(1.0, "1.000"), (0.0234, "0.023"), (0.001, "0.001"), (1e-9, "<0.001")])
def test_small_p_value_is_not_shown_as_0(p_value: float, text: str) -> None:
    row = PairedComparison("same", 10, 10, 0.0, 1.0, 0.5, 1.0, 10, 0, 1e-9, p_value, None)

    assert row.p_text == text


@pytest.mark.parametrize(("better", "worse", "verdict"), [(8, 0, "better"), (0, 8, "worse"), (8, 4, "inconclusive")])
def test_verdict_is_better_worse_or_inconclusive(better: int, worse: int, verdict: str) -> None:
    scores = [(0.0, 1.0)] * better + [(1.0, 0.0)] * worse + [(1.0, 1.0)] * (30 - better - worse)
    pairing = paired(*scores)

    rows = comparison.compare(pairing.criteria, pairing.pairs)

    assert [row.verdict for row in rows] == [verdict, verdict]
    assert [row.is_significant for row in rows] == [verdict != "inconclusive"] * 2


@pytest.mark.parametrize("items", [1, 3, MIN_ITEMS - 1])
def test_comparison_below_minimum_items_is_inconclusive(items: int) -> None:
    few, enough = paired(*[(0.0, 1.0)] * items), paired(*[(0.0, 1.0)] * MIN_ITEMS)

    [_, row] = comparison.compare(few.criteria, few.pairs)
    [_, decided] = comparison.compare(enough.criteria, enough.pairs)

    assert (row.verdict, row.items_needed) == ("inconclusive", MIN_ITEMS - items)
    assert (decided.verdict, decided.items_needed) == ("better", None)


def test_test_and_interval_have_to_agree() -> None:
    """Five of 30 items better, none worse: the interval alone leaves out 0."""
    pairing = paired(*[(0.0, 1.0)] * 5, *[(1.0, 1.0)] * 25)

    [row, _] = comparison.compare(pairing.criteria, pairing.pairs)

    assert row.low > 0
    assert (row.p_value, row.verdict) == (0.0625, "inconclusive")
    assert row.items_needed is not None
    assert row.verdict_text == f"inconclusive, about {row.items_needed} more"


def test_samples_of_same_item_count_as_single_item() -> None:
    """Compare five items with four better samples each: they are 20 pairs, and no more evidence than five items."""
    first, second = ([item(n % 5, score) for n in range(20)] for score in (0.0, 1.0))
    pairing = comparison.pair_items(first, second)

    [row, _] = comparison.compare(pairing.criteria, pairing.pairs)

    assert (pairing.items, len(pairing.pairs)) == (5, 20)
    assert (row.items, row.samples, row.better, row.p_value) == (5, 20, 5, 2 / 2**5)
    assert (row.verdict, row.items_text) == ("inconclusive", "5 (20 samples)")


def test_samples_of_an_item_are_averaged_before_items_are() -> None:
    first = [item(1, 0.0), item(1, 0.0), item(1, 0.0), item(2, 0.4)]
    second = [item(1, 0.9), item(1, 0.6), item(1, None), item(2, 0.3)]
    pairing = comparison.pair_items(first, second)

    [_, row] = comparison.compare(pairing.criteria, pairing.pairs)

    assert (row.items, row.samples, row.better, row.worse) == (2, 3, 1, 1)
    assert (row.first, row.second) == (pytest.approx(0.2), pytest.approx((0.75 + 0.3) / 2))


def criteria_of(*scores: Sequence[tuple[float, float]]) -> Pairing:
    """Return the pairing of two runs with these scores by each of some criteria."""
    runs = [
        [
            {**item(n, None), "results": [{"name": f"c{c}", "score": row[n][run]} for c, row in enumerate(scores)]}
            for n in range(len(scores[0]))
        ]
        for run in (0, 1)
    ]
    return comparison.pair_items(*runs)


def test_p_values_are_corrected_for_the_number_of_criteria() -> None:
    changed = [(0.0, 1.0)] * 7 + [(1.0, 1.0)] * 23  # p is 2 / 128
    alone, among = criteria_of(changed), criteria_of(changed, *[[(1.0, 1.0)] * 30] * 3)

    [single] = comparison.compare(alone.criteria, alone.pairs)
    first, *others = comparison.compare(among.criteria, among.pairs)

    assert (single.p_value, single.p_adjusted, single.verdict) == (pytest.approx(2 / 128), single.p_value, "better")
    assert (first.p_value, first.verdict) == (single.p_value, "inconclusive")
    assert first.p_adjusted == 4 * first.p_value
    assert [row.p_adjusted for row in others] == [1.0, 1.0, 1.0]


def test_p_values_are_corrected_for_the_number_of_slices() -> None:
    changed = [(0.0, 1.0)] * 7 + [(1.0, 1.0)] * 23
    runs = [
        [item(n, pair[run], at=at) for at in ("de", "en", "fr") for n, pair in enumerate(changed)] for run in (0, 1)
    ]
    pairing = comparison.pair_items(*runs, "item.at")

    rows = comparison.compare_slices(pairing.criteria, pairing.slices)

    assert [(value, row.criterion) for value, row in rows[:3]] == [("de", OVERALL), ("de", "score"), ("en", OVERALL)]
    assert [row.p_adjusted for _, row in rows] == pytest.approx([6 / 128] * 6)


def test_errored_items_are_left_out_of_a_comparison() -> None:
    pairing = paired((None, 1.0), (0.2, 0.9), (0.8, 0.7))

    overall, score = comparison.compare(pairing.criteria, pairing.pairs)

    assert (overall.criterion, overall.items, overall.first, overall.second) == (OVERALL, 2, 0.5, 1.0)
    assert (overall.better, overall.worse) == (1, 0)
    assert (score.criterion, score.items, score.better, score.worse) == ("score", 2, 1, 1)
    assert score.difference == pytest.approx(0.3)
    assert not score.is_significant
    errored = paired((None, None))
    assert comparison.compare(errored.criteria, errored.pairs) == []


def test_worst_regressions_come_first() -> None:
    pairs = paired((0.8, 0.7), (0.8, 0.1), (0.8, 0.9)).pairs

    assert [pair.first.id for pair in comparison.regressions(pairs, 5)] == ["outputitem_1", "outputitem_0"]
    assert [pair.first.id for pair in comparison.regressions(pairs, 1)] == ["outputitem_1"]


def test_slices_by_a_field_of_the_item() -> None:
    run = [item(n, 1.0, about={"language": language}) for n, language in enumerate(["de", "en", "de"])]
    run.append(item(9, 1.0))

    by_value = comparison.pair_items(run, run, "item.about.language").slices

    assert {value: len(group) for value, group in by_value.items()} == {"(none)": 1, "de": 2, "en": 1}


def test_slices_are_bounded() -> None:
    run = [item(n, 1.0) for n in range(MAX_SLICES + 1)]

    assert len(comparison.pair_items(run[1:], run, "item.n").slices) == MAX_SLICES
    with pytest.raises(comparison.TooManySlices):
        comparison.pair_items(run, run, "item.n")


def test_gap_is_between_the_best_and_the_worst_slice_of_each_run() -> None:
    shares = {"de": (0.9, 0.5), "en": (0.6, 0.5), "fr": (0.3, 0.4)}
    runs = [
        [item(n, float(n < share[run] * 400), at=at) for at, share in shares.items() for n in range(400)]
        for run in (0, 1)
    ]
    pairing = comparison.pair_items(runs[0], runs[1], "item.at")
    error = 1.96 * math.sqrt((0.9 * 0.1 + 0.3 * 0.7) / 400)

    wide, narrow = comparison.gaps(pairing.criteria, pairing.slices)

    assert (wide.criterion, wide.run, wide.highest, wide.lowest) == ("score", "first", "de", "fr")
    assert wide.gap == pytest.approx(0.6)
    assert (wide.low, wide.high) == (pytest.approx(0.6 - error, abs=0.01), pytest.approx(0.6 + error, abs=0.01))
    assert (narrow.run, narrow.lowest) == ("second", "fr")
    assert narrow.gap == pytest.approx(0.1)


def test_single_scored_slice_has_no_gap() -> None:
    first, second = ([item(1, score), item(2, None)] for score in (1.0, 0.0))
    pairing = comparison.pair_items(first, second, "item.n")

    assert comparison.gaps(pairing.criteria, pairing.slices) == []


def test_the_largest_scores_are_compared() -> None:
    """Runs that were graded before scores had a bound may have any."""
    pairing = paired(*((1.7e308, -1.7e308) for _ in range(2000)), (1e300, 0.0))
    compared = comparison.compare(pairing.criteria, pairing.pairs)
    assert (compared[1].better, compared[1].worse) == (0, 2001)
    assert all(map(math.isfinite, (compared[1].first, compared[1].second, compared[1].low, compared[1].high)))
    assert len(comparison.regressions(pairing.pairs, 5)) == 5
    groups = {"a": pairing.pairs[:1000], "b": pairing.pairs[1000:]}
    assert all(math.isfinite(gap.gap) for gap in comparison.gaps(pairing.criteria, groups))
