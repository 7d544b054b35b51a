"""A prompt that is too long, in the words of each server."""

from typing import Any

import msgspec
import pytest

from workers.engines.port import Answer
from workers.engines.refusals import CODE, is_too_long, limit_in, translate_refusal


def refused(status: int = 400, **error: Any) -> Answer:
    return Answer(status, msgspec.json.encode({"error": error}))


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        ({"message": "Short.", "code": CODE}, None),
        ({"message": "This model's maximum context length is 2048 tokens. However, your prompt contains …"}, 2048),
        ({"message": "The engine prompt length 2048 exceeds the max_model_len 2048. Please reduce prompt."}, 2048),
        ({"message": "The input (61709 tokens) is longer than the model's context length (40960 tokens)."}, 40960),
        ({"message": "Requested token count exceeds the model's maximum context length of 8192 tokens."}, 8192),
        ({"message": "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."}, 59862),
        ({"message": "too long", "type": "exceed_context_size_error", "n_prompt_tokens": 4476, "n_ctx": 4096}, 4096),
        ({"message": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000 `inputs` tokens"}, 4096),
        ({"message": "`inputs` must have less than 4095 tokens. Given: 9000"}, 4095),
        ({"message": "Prompt length (5056) exceeds maximum input length (2048)"}, 2048),
    ],
)
def test_context_overflow_is_recognized_and_gets_openai_error_code(error: dict[str, Any], limit: int | None) -> None:
    answer = refused(**error)

    assert is_too_long(answer)
    assert limit_in(answer) == limit
    told = msgspec.json.decode(translate_refusal("/v1/responses", answer).body)["error"]
    assert (told["code"], told["message"]) == (CODE, error["message"])


@pytest.mark.parametrize(
    "answer",
    [
        refused(message="max_tokens is too large; the maximum context length is 2048", param="max_tokens"),
        refused(message="Invalid schema."),
        refused(500, message="maximum context length"),
        Answer(400, b"nonsense"),
        Answer(400, b'{"error": "maximum context length"}'),
        Answer(200, b"{}"),
    ],
)
def test_unrelated_answer_is_returned_unchanged(answer: Answer) -> None:
    assert not is_too_long(answer)
    assert translate_refusal("/v1/responses", answer) is answer
