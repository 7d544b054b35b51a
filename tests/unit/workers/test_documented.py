"""What of a body reaches the engine."""

import pytest

from workers.engines.documented import FIELDS, documented

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
