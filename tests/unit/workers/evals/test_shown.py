"""Samples as clients see them: texts and numbers where the SDK's types have them, and no more than is bounded."""

import warnings
from typing import Any

import pytest
from openai._models import construct_type
from openai.types.evals.runs.output_item_retrieve_response import Sample

from jobs.evals.graders.base import ModelAnswer
from jobs.evals.runs import Sampled
from jobs.evals.samples import sample_from_given
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.evals import shown
from workers.evals.item_sources import CaseRow
from workers.evals.sampled_model import add_sample

NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cached_tokens": 0}
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 4}}
TOKENS = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "cached_tokens": 4}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def completion(content: str | None = "Paris", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **message}
    return {"model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}


def of_given(sample: dict[str, Any]) -> dict[str, Any]:
    return shown.of_item(sample_from_given(sample), [], {}, sample)


def of_sampled(endpoint: str, body: dict[str, Any], index: int = 0, **params: Any) -> dict[str, Any]:
    template = [{"role": "user", "content": "{{ item.q }}"}]
    sampled = Sampled(endpoint=endpoint, model="m", template=template, params=params, n=3)
    row = CaseRow(0, {"q": "Where?"})
    add_sample(row, index, sampled, ModelAnswer(200, body), 2048)
    return row.shown


def numbers(sample: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sample[name] for name in ("temperature", "top_p", "max_completion_tokens", "seed"))


def test_answer_that_came_with_an_item_is_shown() -> None:
    sample = of_given(completion(tool_calls=[CALL]))

    assert sample["output"] == [{"role": "assistant", "content": "Paris", "tool_calls": [CALL]}]
    assert (sample["finish_reason"], sample["model"], sample["usage"]) == ("stop", "m-1", TOKENS)
    assert (sample["input"], sample["error"], numbers(sample)) == ([], None, (None, None, None, None))


def test_given_response_reports_its_sampling_parameters() -> None:
    part = {"type": "output_text", "text": "Paris"}
    given = {"output": [{"type": "message", "content": [part]}], "temperature": 0.5, "top_p": 1, "max_output_tokens": 7}

    assert numbers(of_given(given)) == (0.5, 1, 7, None)


@pytest.mark.parametrize("given", [{"choices": "xy"}, {"choices": [{"message": 5}]}, {"model": 5, "usage": "much"}])
def test_malformed_sample_is_shown_without_answer(given: dict[str, Any]) -> None:
    sample = of_given(given)

    assert [message["content"] for message in sample["output"]] == [""]
    assert (sample["model"], sample["finish_reason"], sample["usage"]) == (None, None, NO_TOKENS)


def test_shown_numbers_match_sampling_parameters() -> None:
    params = {"temperature": 0.7, "top_p": 0.9, "max_completion_tokens": 99, "seed": 5}
    answer = {"output": [], "temperature": 0.7, "top_p": 0.9, "max_output_tokens": 99}

    assert numbers(of_sampled(CHAT, completion(), 2, **params)) == (0.7, 0.9, 99, 7)
    assert numbers(of_sampled(RESPONSES, answer, 2, **params)) == (0.7, 0.9, 99, None)


def test_numbers_that_no_run_names_are_the_defaults_and_the_context() -> None:
    assert numbers(of_sampled(CHAT, completion())) == (1.0, 1.0, 2048, None)


def test_stored_answer_has_its_request_and_its_tokens() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, PICTURE]}]
    request = {"messages": messages, "temperature": 0.2, "max_tokens": 5}

    sample = shown.of_item(sample_from_given(completion()), messages, request, completion())

    assert sample["input"] == [{"role": "user", "content": "What?\n[image_url]"}]
    assert (sample["usage"], numbers(sample)) == (TOKENS, (0.2, 1.0, 5, None))


def test_items_of_a_response_that_are_no_messages_are_named() -> None:
    items = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "5"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "call_1"},
    ]

    sample = shown.of_item(completion(), items, {}, completion())

    assert sample["input"] == [
        {"role": "assistant", "content": "[function_call]"},
        {"role": "tool", "content": "[function_call_output]"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "call_1"},
    ]


def test_sdk_dumps_a_sample_without_a_warning() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, PICTURE]}]
    sample = shown.of_item(sample_from_given(completion()), messages, {"messages": messages}, completion())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        construct_type(type_=Sample, value=sample).model_dump_json()  # type: ignore[attr-defined]


def test_judge_is_shown_with_its_messages_its_answer_and_its_tokens() -> None:
    request = {"messages": [{"role": "user", "content": [PICTURE]}], "temperature": 0, "max_completion_tokens": 1024}

    sample = shown.of_judge(request, ModelAnswer(200, completion('{"result": 1}')), shown.Allowance())

    assert sample["input"] == [{"role": "user", "content": "[image_url]"}]
    assert sample["output"] == [{"role": "assistant", "content": '{"result": 1}'}]
    assert (sample["model"], sample["finish_reason"], sample["usage"]) == ("m-1", "stop", TOKENS)
    assert (sample["error"], numbers(sample)) == (None, (0, 1.0, 1024, None))


def test_refusal_and_error_of_a_judge_are_shown() -> None:
    request = {"model": "judge", "messages": []}
    refused = ModelAnswer(200, completion(None, refusal="I will not."))
    broken = ModelAnswer(503, {"error": {"message": "It is down.", "code": "overloaded"}})

    samples = [shown.of_judge(request, answer, shown.Allowance()) for answer in (refused, broken, ModelAnswer(200, {}))]

    assert [[message["content"] for message in sample["output"]] for sample in samples] == [["I will not."], [], [""]]
    assert samples[1]["error"] == {"code": "overloaded", "message": "It is down."}
    assert [sample["model"] for sample in samples] == ["m-1", "judge", "judge"]


def test_judges_of_an_item_share_a_bound_of_characters() -> None:
    request = {"messages": [{"role": "user", "content": "a" * 6}, {"role": "user", "content": "b" * 6}]}
    allowance = shown.Allowance(14)

    first, second = (shown.of_judge(request, ModelAnswer(200, completion("cccc")), allowance) for _ in range(2))

    contents = [message["content"] for sample in (first, second) for message in (*sample["input"], *sample["output"])]
    assert contents == ["aaaaaa", "bbbbbb", "cc…", "…", "…", "…"]
