"""What of a body reaches the engine."""

from typing import Any

import msgspec
import pytest

from workers.engines.documented import FIELDS, documented, objection

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("url", FIELDS)
def test_no_field_of_vllm_alone_is_passed_on(url: str) -> None:
    body = {
        "model": "m",
        "priority": -1,
        "cache_salt": "x",
        "kv_transfer_params": {},
        "chat_template": "",
        "vllm_xargs": {},
    }

    assert documented(url, body) == {"model": "m"}


def test_null_means_not_given() -> None:
    assert documented(CHAT, {"model": "m", "max_tokens": None, "seed": 0}) == {"model": "m", "seed": 0}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 129}, "n"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 129}, "best_of"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(body: dict[str, Any], param: str) -> None:
    refused = objection(CHAT, body)

    assert refused is not None
    assert refused.status == 400
    assert msgspec.json.decode(refused.body)["error"]["param"] == param


@pytest.mark.parametrize("body", [{}, {"n": 128}, {"logprobs": True, "top_logprobs": 20}, {"n": "many"}])
def test_the_rest_is_for_the_engine_to_judge(body: dict[str, Any]) -> None:
    assert objection(CHAT, body) is None


def test_an_unknown_url_is_refused() -> None:
    refused = objection("/v1/moderations", {})

    assert refused is not None
    assert refused.status == 404
