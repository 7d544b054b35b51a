"""The judgement of pipelines finds what it is to find."""

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.judging_pipelines import faults, told
from tests.chaos.pipeline_clients import KnownPipeline
from tests.support.oracle import Told

STEPS: dict[str, dict[str, Any]] = {
    name: {"job_id": job_id, "status": "completed", "error": None}
    for name, job_id in (("answer", "batch_1"), ("rows", "dsversion_1"), ("check", "evalrun_1"), ("promote", "promo_1"))
}
FOUND: dict[str, Any] = {
    **{name: [step["job_id"]] for name, step in STEPS.items()},
    "promotions": ["promo_1"],
    "counts": {"total": 20, "passed": 20, "failed": 0, "errored": 0},
}
WHOLE = KnownPipeline("pipe-000", 20, id="pipe_1", status="completed", steps=STEPS)


def test_pipeline_with_a_job_for_each_step_passes() -> None:
    waiting = {**STEPS, "check": {"job_id": None, "status": "skipped", "error": None}}
    cancelled = replace(WHOLE, status="cancelled", cancelled=True, steps=waiting)

    assert list(faults(WHOLE, FOUND)) == []
    assert list(faults(cancelled, FOUND | {"check": []})) == []
    assert list(faults(cancelled, FOUND | {"check": [], "promotions": []})) == []


@pytest.mark.parametrize(
    ("pipeline", "found", "words"),
    [
        ({"status": "failed"}, {}, "pipe-000 failed"),
        ({"status": "cancelled"}, {}, "pipe-000 cancelled"),
        ({}, {"rows": ["dsversion_1", "dsversion_2"]}, "the step rows has made"),
        ({}, {"rows": []}, "the step rows has made"),
        ({"steps": {**STEPS, "rows": {**STEPS["rows"], "status": "in_progress"}}}, {}, "before its steps"),
        ({}, {"promotions": []}, "its alias was moved by []"),
        ({}, {"promotions": ["promo_1", "promo_1"]}, "its alias was moved by"),
        ({"status": "cancelled", "cancelled": True}, {"promotions": ["promo_2"]}, "its alias was moved by"),
        ({}, {"counts": {"total": 19, "passed": 19}}, "of 20 lines are graded"),
        ({}, {"counts": {"total": 20, "passed": 19}}, "of 20 lines are graded"),
    ],
)
def test_wrong_outcome_is_blamed(pipeline: dict[str, Any], found: dict[str, Any], words: str) -> None:
    assert any(words in fault for fault in faults(replace(WHOLE, **pipeline), FOUND | found))


def test_pipeline_end_is_delivered_as_single_event() -> None:
    event = Told("/slow/all", "wh_1", "evt_1", "pipeline.completed", "pipe_1")
    other = replace(event, webhook_id="wh_2", id="evt_2")
    wrong = replace(event, type="pipeline.failed")

    assert told(WHOLE, [event, event]) == []
    assert [bool(told(WHOLE, hooks)) for hooks in ([], [event, other], [wrong])] == [True] * 3
