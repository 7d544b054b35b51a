"""Graders through the official SDK, against a web process without workers."""

from functools import partial

import openai
import pytest
from openai import OpenAI


def test_a_grader_is_validated_and_run(sdk: OpenAI) -> None:
    grader = {
        "type": "multi", "name": "both", "calculate_output": "(same + alike) / 2",
        "graders": {
            "same": {
                "type": "string_check", "name": "same", "operation": "ilike", "input": "{{ sample.output_text }}",
                "reference": "{{ item.answer }}",
            },
            "alike": {
                "type": "text_similarity", "name": "alike", "evaluation_metric": "rouge_1",
                "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
            },
        },
    }  # fmt: skip
    alpha = sdk.fine_tuning.alpha.graders

    assert alpha.validate(grader=grader).grader is not None  # type: ignore[arg-type]  # the SDK's type allows one grader
    result = alpha.run(grader=grader, model_sample="lima peru", item={"answer": "Lima"})  # type: ignore[arg-type]

    assert result.reward == pytest.approx((1 + 2 / 3) / 2)
    assert result.sub_rewards == {"same": 1.0, "alike": pytest.approx(2 / 3)}
    assert not any(result.metadata.errors.model_dump().values())
    assert result.metadata.execution_time >= 0


def test_grader_without_known_sandbox_returns_503_with_retry_after(sdk: OpenAI) -> None:
    grader = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1"}
    alpha = sdk.with_options(max_retries=0).fine_tuning.alpha.graders
    for call in (alpha.validate, partial(alpha.run, model_sample="")):
        with pytest.raises(openai.InternalServerError) as raised:
            call(grader=grader)
        assert (raised.value.status_code, raised.value.code, raised.value.param) == (503, "sandbox_unknown", "grader")
        assert int(raised.value.response.headers["Retry-After"]) > 0
