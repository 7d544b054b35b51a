"""The judgement of runs of evals finds what it is to find."""

from dataclasses import replace
from typing import Any

import pytest

from tests.support import eval_oracle
from tests.support.eval_oracle import Evaluation, Outcome
from tests.support.oracle import Told

RIGHT = (True, False, True)
ITEMS = ((0, "pass"), (1, "fail"), (2, "pass"))
COUNTS = {"total": 3, "passed": 2, "failed": 1, "errored": 0}
SAME = {"testing_criteria": "same", "passed": 2, "failed": 1, "errored": 0}
JUDGE = {"testing_criteria": "judge", "passed": 0, "failed": 0, "errored": 3}
WHOLE = Outcome("completed", COUNTS, [SAME], ITEMS)


def evaluation(**given: Any) -> Evaluation:
    return Evaluation("eval-000", RIGHT, id="evalrun_1", status="completed", **given)


def test_items_that_are_graded_once_pass() -> None:
    errored = Outcome(
        "completed", {**COUNTS, "passed": 0, "failed": 0, "errored": 3}, [SAME, JUDGE], [(n, "error") for n in range(3)]
    )
    cancelled = Outcome("canceled", {**COUNTS, "total": 1, "passed": 1, "failed": 0}, [], [(2, "pass")])

    assert list(eval_oracle.judge(evaluation(), WHOLE)) == []
    assert list(eval_oracle.judge(evaluation(is_judged=True), errored)) == []
    assert list(eval_oracle.judge(evaluation(cancelled=True), cancelled)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "failed"}, "eval-000 failed"),
        ({"items": (*ITEMS, (2, "pass")), "counts": {**COUNTS, "total": 4, "passed": 3}}, "graded more than once"),
        ({"items": ITEMS[:2], "counts": {**COUNTS, "total": 2, "passed": 1}}, "2 of 3 items are graded"),
        ({"items": ((0, "fail"), *ITEMS[1:])}, "item 0 is fail, not pass"),
        ({"items": ((0, "error"), *ITEMS[1:])}, "item 0 is error, not pass"),
        ({"counts": {**COUNTS, "total": 4}}, "it counts"),
        ({"criteria": [{**SAME, "passed": 3}]}, "its criteria count"),
        ({"criteria": []}, "its criteria count"),
    ],
)
def test_wrong_outcome_is_blamed(change: dict[str, Any], words: str) -> None:
    assert any(words in fault for fault in eval_oracle.judge(evaluation(), replace(WHOLE, **change)))


def test_run_end_is_delivered_as_single_event() -> None:
    event = Told("/slow/all", "wh_1", "evt_1", "eval.run.succeeded", "evalrun_1")
    other = replace(event, webhook_id="wh_2", id="evt_2")
    wrong = replace(event, type="eval.run.failed")

    assert eval_oracle.told(evaluation(), [event, event]) == []
    assert [bool(eval_oracle.told(evaluation(), hooks)) for hooks in ([], [event, other], [wrong])] == [True] * 3
