"""Reports for CI: test cases and a summary, in which hostile texts stay texts."""

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cli.client.regression_report import MAX_WORST, RegressionReport
from jobs.evals.comparison import pair_items, regressions
from jobs.evals.regression import decide

HOSTILE = "x]]> <b>&| \x1b[31m\uffff `code` [a](http://h) *b* @team\nsecond # line"


def output(number: int, score: float | None, text: str = "an answer", name: str = "same") -> dict[str, Any]:
    return {
        "id": f"outputitem_{number}",
        "datasource_item": {"n": number, "question": text},
        "status": "error" if score is None else "pass" if score else "fail",
        "results": [{"name": name, "score": score, "passed": bool(score)}],
        "sample": {"output": [{"role": "assistant", "content": text}]},
    }


def report(first: list[Any], second: list[Any], margin: float = 5.0, **run: Any) -> RegressionReport:
    pairing = pair_items(first, second)
    pairs = regressions(pairing.pairs, MAX_WORST)
    by_id = [{item["id"]: item for item in items} for items in (first, second)]
    worst = [(by_id[0][pair.first.id], by_id[1][pair.second.id]) for pair in pairs]
    shown = {
        "name": "r",
        "model": "m",
        "eval_id": "eval_1",
        "result_counts": {"errored": 0},
        "report_url": "http://s/r",
    }
    runs = [{**shown, "id": run_id, **run} for run_id in ("evalrun_1", "evalrun_2")]
    return RegressionReport(decide(pairing, 0.05, margin, []), *runs, worst, margin, 0.95)


def cases(report: RegressionReport) -> list[tuple[str | None, str]]:
    """Return the name of each test case and the tag of its result."""
    return [(case.get("name"), case[0].tag) for case in ET.fromstring(report.junit())]


@pytest.mark.parametrize(
    ("lost", "items", "tag", "title"),
    [
        (0, 60, "system-out", "Not worse than the baseline"),
        (30, 60, "failure", "Worse than the baseline"),
        (2, 60, "skipped", "Inconclusive"),
    ],
)
def test_criteria_are_test_cases_and_lost_items_are_failures(lost: int, items: int, tag: str, title: str) -> None:
    made = report([output(n, 1.0) for n in range(items)], [output(n, float(n >= lost)) for n in range(items)])

    lost_items = [(f"outputitem_{n}", "failure") for n in range(lost)] if tag == "failure" else []
    assert cases(made) == [("all criteria", tag), ("same", tag), *lost_items]
    assert made.markdown().startswith(f"## {title}\n")
    assert made.markdown().count("<details>") == min(lost, 10)


def test_number_of_failed_items_is_bounded() -> None:
    made = report([output(n, 1.0, "x" * 9000) for n in range(200)], [output(n, 0.0, "x" * 9000) for n in range(200)])

    assert len(cases(made)) == 2 + MAX_WORST
    assert len(made.junit()) < 1_000_000
    assert len(made.markdown()) < 200_000


def test_criterion_without_scores_is_skipped() -> None:
    made = report([output(n, 1.0) for n in range(60)], [output(n, None) for n in range(60)])

    assert cases(made) == [("all criteria", "skipped"), ("same", "skipped")]
    assert "| same | 0 | - | - | - | - | - | inconclusive |" in made.markdown()
    assert made.summary()["unscored"] == ["all criteria", "same"]


def test_hostile_texts_stay_texts() -> None:
    first, second = ([output(n, score, HOSTILE, HOSTILE) for n in range(60)] for score in (1.0, 0.0))
    made = report(first, second, name=HOSTILE, model=HOSTILE)

    suite, page = ET.fromstring(made.junit()), made.markdown()

    assert "x]]> <b>&| \\x1b[31m\ufffd" in str(suite.get("name"))
    assert "\x1b" not in page
    assert "<b>" not in page
    table = [line for line in page.split("\n") if line.startswith("| ")]
    assert {line.count("|") for line in table} == {9}
    assert not any(mark in "".join(table) for mark in ("[", "`", "*", "@", "\n"))
