"""Tokens of requests, estimated from every value that an engine takes."""

from typing import Any

import pytest

from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from jobs.requests.token_estimates import DEFAULT_OUTPUT_TOKENS, input_tokens, output_tokens

MAX = 1 << 20


@pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (40, 10), (41, 11)])
def test_input_is_a_quarter_of_the_bytes(size: int, tokens: int) -> None:
    assert input_tokens(size) == tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 1, "max_tokens": 7, "n": 2}, 14),
        ({"max_output_tokens": 1, "max_tokens": 100_000}, 100_000),
        ({"max_tokens": 7, "n": 2, "best_of": 5}, 35),
        ({"max_tokens": "7", "n": "2"}, 14),
        ({"max_tokens": 7.0, "n": 2.0}, 14),
        *(
            ({"max_tokens": wrong, "n": wrong}, DEFAULT_OUTPUT_TOKENS)
            for wrong in (float("nan"), -1, 0, "many", "", None, [5], {"a": 1})
        ),
        *(({"max_tokens": large, "n": large}, MAX * 2048) for large in (1e308, float("inf"), 10**30, 10**400)),
    ],
)
def test_output_of_each_answer_is_the_largest_bound(body: dict[str, Any], tokens: int) -> None:
    assert output_tokens(CHAT, body) == output_tokens(RESPONSES, body) == tokens
    assert output_tokens(EMBEDDINGS, body) == 0


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", 1), (["a", "b"], 2), ([[1, 2], [3]], 2), ([1, 2, 3], 1), ([], 1), (None, 1), (["a"] * 5000, 2048)],
)
def test_completion_has_an_answer_for_each_prompt(prompt: Any, prompts: int) -> None:
    assert output_tokens(COMPLETIONS, {"prompt": prompt, "max_tokens": 5, "n": 2}) == 10 * prompts
