"""What of a request's body reaches vLLM: OpenAI's documented fields (`workers.engines.caps` bounds their values).

vLLM takes many fields of its own in the same body: `priority` jumps the queue, `cache_salt` and `kv_transfer_params`
reach into its caches, `chat_template` runs a template of the caller's. None of them is part of the API that is
promised, so they are left out.
"""

from collections.abc import Mapping
from typing import Any, Final

_SAMPLING: Final = frozenset({
    "model", "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop",
    "temperature", "top_p", "user",
})  # fmt: skip

FIELDS: Final[dict[str, frozenset[str]]] = {
    "/v1/chat/completions": _SAMPLING | {
        "messages", "audio", "function_call", "functions", "logprobs", "max_completion_tokens", "metadata",
        "modalities", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention",
        "reasoning_effort", "response_format", "safety_identifier", "service_tier", "tool_choice", "tools",
        "top_logprobs", "verbosity", "web_search_options",
    },
    "/v1/completions": _SAMPLING | {"prompt", "best_of", "echo", "logprobs", "suffix"},
    "/v1/responses": frozenset({
        "model", "input", "instructions", "include", "max_output_tokens", "max_tool_calls", "metadata",
        "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "reasoning",
        "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p",
        "truncation", "user",
    }),
    "/v1/embeddings": frozenset({"model", "input", "dimensions", "encoding_format", "user"}),
}  # fmt: skip


def documented(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without what OpenAI doesn't document for this URL, and without nulls: they mean "not given"."""
    return {name: value for name, value in body.items() if name in FIELDS[url] and value is not None}
