"""The oracle reports each violation, made by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from openai.types import Batch
from openai.types.responses import Response

from tests.support import oracle
from tests.support.fake_engine import reply
from tests.support.oracle import Asked, Job, Line, Result, Told

pytestmark = pytest.mark.verify

_CHAT = "/v1/chat/completions"
_REST = {"object": "batch", "endpoint": _CHAT, "input_file_id": "file-1", "completion_window": "24h", "created_at": 1}


def _job(**changes: Any) -> Job:
    prompts = {"a": "Say a", "b": "Say b", "c": "Say c !reset"}
    return Job(
        **{"key": "job", "endpoint": _CHAT, "model": "stub", "prompts": prompts, "batch_id": "batch_1", **changes}
    )


def _answered(job: Job, name: str) -> Line:
    body = json.loads(reply(job.endpoint, job.body(name), job.prompts[name]).body)
    return {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}


def _failed(name: str, code: str = "engine_error") -> Line:
    return {"custom_id": name, "response": None, "error": {"code": code, "message": "no"}}


def _usage(asked: int, said: int) -> dict[str, Any]:
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {"input_tokens": asked, "output_tokens": said, "total_tokens": asked + said, **details}


def _batch(job: Job, lines: list[Line], **changes: Any) -> Batch:
    usages = [line["response"]["body"]["usage"] for line in lines]
    asked, said = sum(usage["prompt_tokens"] for usage in usages), sum(usage["completion_tokens"] for usage in usages)
    fields = {
        "id": job.batch_id,
        "status": "completed",
        "request_counts": {"total": 3, "completed": len(lines), "failed": 3 - len(lines)},
        "usage": _usage(asked, said),
    }
    return Batch.model_validate(_REST | fields | changes)


def _result(job: Job, **changes: Any) -> Result:
    output = [_answered(job, "a"), _answered(job, "b")]
    return Result(_batch(job, output, **changes), output, [_failed("c")])


def _violations(job: Job, result: Result) -> str:
    checks = (oracle.ended, oracle.complete, oracle.counted)
    return "; ".join(fault for check in checks for fault in check(job, result))


def _swap_answers(result: Result) -> None:
    first, second = result.output
    first["response"], second["response"] = second["response"], first["response"]


@pytest.mark.parametrize(
    ("harm", "changes", "violation"),
    [
        (lambda _: None, {}, ""),
        (lambda result: result.output.pop(), {}, "1 lines missing: b"),
        (lambda result: result.output.__setitem__(1, result.output[0]), {}, "1 lines more than once: a"),
        (_swap_answers, {}, "2 lines with another's answer: a, b"),
        (
            lambda result: result.errors.append(_failed(result.output.pop()["custom_id"])),
            {},
            "1 lines that should have been answered: b",
        ),
        (lambda _: None, {"status": "failed"}, "is failed"),
        (lambda _: None, {"request_counts": {"total": 3, "completed": 3, "failed": 0}}, "counts"),
        (lambda _: None, {"request_counts": {"total": 4, "completed": 2, "failed": 1}}, "counts"),
        (lambda _: None, {"usage": _usage(1, 1)}, "usage"),
    ],
)
def test_batch_that_breaks_a_promise_is_found(
    harm: Callable[[Result], object], changes: dict[str, Any], violation: str
) -> None:
    job = _job()
    result = _result(job, **changes)
    harm(result)

    found = _violations(job, result)

    assert violation in found
    assert bool(found) is bool(violation)


def test_response_may_have_more_fields_than_the_engine_gave_and_no_other_answer() -> None:
    job = _job(endpoint="/v1/responses")
    line, other = _answered(job, "a"), _answered(job, "b")
    line["response"]["body"] |= {"completed_at": 1, "truncation": "disabled"}
    line["response"]["body"]["output"][0]["content"][0]["logprobs"] = []

    assert oracle.complete(replace(job, prompts={"a": job.prompts["a"]}), _only(job, line)) == []
    wrong = oracle.complete(replace(job, prompts={"a": job.prompts["a"]}), _only(job, {**other, "custom_id": "a"}))
    assert "another's answer" in "".join(wrong)


def _only(job: Job, line: Line) -> Result:
    return Result(Batch.model_validate(_REST | {"id": job.batch_id, "status": "completed"}), [line], [])


def test_vectors_of_the_cache_are_those_of_their_line_and_no_others() -> None:
    job = _job(endpoint="/v1/embeddings")
    first, second = (_answered(job, name)["response"]["body"] for name in "ab")
    cached = {**first, "usage": {**first["usage"], "prompt_tokens_details": {"cached_tokens": 3}}}
    cached["data"] = [{**first["data"][0], "embedding": [x + 1e-8 for x in first["data"][0]["embedding"]]}]

    def wrong(body: Line) -> list[str]:
        return [fault for fault in oracle.complete(job, Result(_batch(job, []), [said(body)])) if "another's" in fault]

    def said(body: Line) -> Line:
        return {"custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None}

    assert wrong(cached) == []
    assert len(wrong({**cached, "data": second["data"]})) == 1
    assert len(wrong({**cached, "usage": {**cached["usage"], "prompt_tokens": 1000}})) == 1


def test_lines_that_were_not_run_count_for_nothing() -> None:
    job = _job(cancelled=True)
    result = _result(job, status="cancelled", request_counts={"total": 3, "completed": 2, "failed": 0})
    result.errors[:] = [_failed("c", "batch_cancelled")]

    assert _violations(job, result) == ""


_IN_VAIN = {"errors": {"object": "list", "data": [{"code": "dependency_failed", "message": "no"}]}, "status": "failed"}


@pytest.mark.parametrize(
    ("changes", "first", "violation"),
    [
        ({"in_progress_at": 1}, "completed", ""),
        (_IN_VAIN, "cancelled", ""),
        ({"status": "cancelled"}, "cancelled", ""),
        ({"in_progress_at": 1}, "cancelled", "ran, though ['first'] did not complete"),
        ({"in_progress_at": 1, **_IN_VAIN}, "failed", "ran, though ['first'] did not complete"),
        (_IN_VAIN, "completed", "failed for ['first'], which completed"),
    ],
)
def test_a_batch_that_runs_or_fails_otherwise_than_those_it_waits_for_is_found(
    changes: dict[str, Any], first: str, violation: str
) -> None:
    job = _job(after=[_job(key="first")])
    result = Result(_batch(job, [], **changes))

    assert "; ".join(oracle.in_order(job, result, lambda _: first)) == (f"job: {violation}" if violation else "")


def test_a_batch_that_fails_for_another_has_no_lines() -> None:
    job = _job(after=[_job(key="first")])

    assert _violations(job, Result(_batch(job, [], **_IN_VAIN))) == ""
    assert "never to run" in _violations(job, _result(job, **_IN_VAIN))


@pytest.mark.parametrize(
    ("polls", "violation"),
    [
        ([{"status": status} for status in ("validating", "in_progress", "validating")], "went back"),
        (
            [
                {"status": "in_progress", "request_counts": {"total": 3, "completed": done, "failed": 0}}
                for done in (1, 2, 1)
            ],
            "went back",
        ),
        ([{}, {"output_file_id": "file-2"}], "changed after it was completed"),
    ],
)
def test_batch_that_goes_back_or_changes_its_end_is_found(polls: list[dict[str, Any]], violation: str) -> None:
    job = _job()

    [found] = oracle.monotone(job, [_batch(job, [], **poll) for poll in polls])

    assert violation in found


def _told(**changes: str) -> Told:
    fields = {"path": "/ok", "webhook_id": "wh_1", "id": "evt_1", "type": "batch.completed", "subject": "batch_1"}
    return Told(**(fields | changes))


@pytest.mark.parametrize(
    ("events", "violation"),
    [
        ([_told()], ""),
        ([_told(), _told()], ""),
        ([], "nobody was told"),
        ([_told(subject="batch_2")], "nobody was told"),
        ([_told(), _told(webhook_id="wh_2")], "told as"),
        ([_told(), _told(id="evt_2")], "told as"),
        ([_told(type="batch.cancelled")], "told as"),
    ],
)
def test_end_needs_webhook_and_all_webhooks_carry_same_event(events: list[Told], violation: str) -> None:
    found = oracle.told(_job(), "completed", events)

    assert len(found) == bool(violation)
    assert violation in "".join(found)


def _asked(**changes: Any) -> Asked:
    return Asked(**{"key": "k", "model": "stub", "prompt": "Tell k", "id": "resp_1", **changes})


def _shown(one: Asked, status: str = "completed", **changes: Any) -> Response:
    rest = {"id": one.id, "background": True, "status": status}
    return Response.model_construct(**{**Response.construct(**one.expected()).model_dump(), **rest, **changes})


_END = Told("/all", "wh_1", "evt_1", "response.completed", "resp_1")


@pytest.mark.parametrize(
    ("one", "statuses", "events", "violation"),
    [
        (_asked(), ["queued", "in_progress", "completed"], [_END, _END], ""),
        (_asked(cancelled=True), ["cancelled"], [replace(_END, type="response.cancelled")], ""),
        (_asked(cancelled=True), ["completed"], [_END], ""),
        (_asked(judged=False), ["incomplete"], [replace(_END, type="response.incomplete")], ""),
        (_asked(), ["queued"], [], "has not ended"),
        (_asked(), ["in_progress", "queued", "completed"], [_END], "went from in_progress to queued"),
        (_asked(), ["completed", "completed"], [_END], "went from completed to completed"),
        (_asked(), ["cancelled"], [replace(_END, type="response.cancelled")], "is cancelled"),
        (_asked(), ["completed"], [], "told as []"),
        (_asked(), ["completed"], [_END, replace(_END, id="evt_2")], "told as"),
        (_asked(), ["completed"], [replace(_END, type="response.failed")], "told as"),
    ],
)
def test_a_response_ends_once_and_never_goes_back(
    one: Asked, statuses: list[str], events: list[Told], violation: str
) -> None:
    found = oracle.answered(one, [_shown(one, status) for status in statuses], events)

    assert len(found) == bool(violation)
    assert violation in "".join(found)


def test_anothers_answer_is_found() -> None:
    [found] = oracle.answered(_asked(), [_shown(_asked(prompt="Tell x"))], [_END])

    assert "answered ('echo" in found


def test_key_without_single_response_is_reported() -> None:
    asked = [_asked(key="a"), _asked(key="b")]

    assert oracle.asked_once(["a", "b"], asked) == []
    assert oracle.asked_once(["a", "a", "c"], asked) == [
        "a: 2 responses for one key", "b: 0 responses for one key", "responses of unknown keys: ['c']",
    ]  # fmt: skip


def test_rework_counts_repeated_prompts_except_poison() -> None:
    assert oracle.rework(["a", "b", "a", "a", "c !reset", "c !reset"]) == 2
