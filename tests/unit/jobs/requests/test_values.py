"""Values outside OpenAI's enums, and fields that no engine serves, are refused with the field in `param`."""

from typing import Any, get_args

import pytest
from openai.types import ReasoningEffort
from openai.types.responses import ResponseIncludable
from openai.types.responses.service_tier import ServiceTier

from jobs.requests import values
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        (RESPONSES, {"truncation": "bogus"}, "truncation"),
        (RESPONSES, {"truncation": ["auto"]}, "truncation"),
        (RESPONSES, {"include": ["file_search_call.results", "bogus"]}, "include[1]"),
        (RESPONSES, {"include": [None]}, "include[0]"),
        (RESPONSES, {"include": "bogus"}, "include"),
        (RESPONSES, {"service_tier": "bogus"}, "service_tier"),
        (RESPONSES, {"service_tier": {}}, "service_tier"),
        (RESPONSES, {"reasoning": {"effort": "bogus"}}, "reasoning.effort"),
        (CHAT, {"reasoning_effort": "bogus"}, "reasoning_effort"),
        (CHAT, {"service_tier": "bogus"}, "service_tier"),
        (RESPONSES, {"truncation": "auto", "include": [], "service_tier": "flex"}, None),
        (RESPONSES, {"reasoning": {"effort": "low"}}, None),
        (RESPONSES, {"truncation": None, "include": None, "service_tier": None, "reasoning": {"effort": None}}, None),
        (COMPLETIONS, {"service_tier": "bogus"}, None),
        (RESPONSES, {"moderation": {"model": "m"}}, "moderation"),
        (CHAT, {"functions": [{"name": "f"}]}, "functions"),
        (CHAT, {"function_call": {"name": "f"}}, "function_call"),
        (CHAT, {"functions": [], "function_call": None}, None),
        (CHAT, {"function_call": "none"}, None),
        (CHAT, {"function_call": "auto", "functions": []}, None),
        (CHAT, {"function_call": "auto", "functions": [{"name": "f"}]}, "function_call"),
        (CHAT, {"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}, "audio"),
        (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (CHAT, {"modalities": ["text"]}, None),
        (CHAT, {"web_search_options": {}}, "web_search_options"),
        (CHAT, {"moderation": {"model": "m"}}, "moderation"),
    ],
)
def test_a_value_that_no_engine_serves_is_refused(url: str, fields: dict[str, Any], param: str | None) -> None:
    found = values.objection(url, {"model": "m", **fields})

    assert (found and found.param) == param
    assert found is None or found.code in ("invalid_value", "unsupported_parameter")


def test_the_values_are_those_of_the_sdk() -> None:
    def of(optional: Any) -> set[str]:
        return set(get_args(next(part for part in get_args(optional) if part is not type(None))))

    assert set(values.EFFORTS) == of(ReasoningEffort)
    assert set(values.SERVICE_TIERS) == of(ServiceTier)
    assert set(values.INCLUDABLE) == set(get_args(ResponseIncludable))
