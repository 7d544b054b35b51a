"""The fields that a request may have, for each engine that runs in a worker's own process.

    OPENAI    documented by OpenAI: a field without a meaning for the engine is a hint, and is accepted
    VLLM      vLLM's own fields that affect an answer, as in its request models (a test compares both)
    RETIRED   vLLM's former names of constraints, which vLLM itself ignores silently
    HANDLED   read by Nightmill before the request goes to an engine

Any other field is refused by its name (`unknown`). A server behind a URL checks its fields itself.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES

CODE: Final = "unknown_parameter"
_QUOTED: Final = 64  # characters of a name

_SAMPLING: Final = frozenset({
    "model", "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop",
    "temperature", "top_p", "user",
})  # fmt: skip

OPENAI: Final[Mapping[str, frozenset[str]]] = {
    CHAT: _SAMPLING | {
        "messages", "audio", "function_call", "functions", "logprobs", "max_completion_tokens", "metadata",
        "modalities", "moderation", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "service_tier",
        "tool_choice", "tools", "top_logprobs", "verbosity", "web_search_options",
    },
    COMPLETIONS: _SAMPLING | {"prompt", "best_of", "echo", "logprobs", "suffix"},
    RESPONSES: frozenset({
        "model", "access_programs", "background_options", "context_management", "image", "input", "instructions",
        "include", "max_output_tokens", "max_tool_calls", "metadata", "moderation", "parallel_tool_calls",
        "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning", "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools",
        "top_logprobs", "top_p", "truncation", "user",
    }),
    EMBEDDINGS: frozenset({"model", "input", "dimensions", "encoding_format", "user"}),
}  # fmt: skip

HANDLED: Final[Mapping[str, frozenset[str]]] = {
    CHAT: frozenset({"cache", "context", "store", "stream", "stream_options"}),
    COMPLETIONS: frozenset({"cache", "stream", "stream_options"}),
    RESPONSES: frozenset({"background", "cache", "context", "conversation", "store", "stream", "stream_options"}),
    EMBEDDINGS: frozenset({"cache"}),
}

#: What an answer must look like, by the name that vLLM had for it before 0.12 ▶ its name in `structured_outputs`.
RETIRED: Final[Mapping[str, str]] = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
}  # fmt: skip

_GENERATION: Final = frozenset({
    "ignore_eos", "include_stop_str_in_output", "min_p", "repetition_penalty", "skip_special_tokens",
    "stop_token_ids", "structured_outputs", "top_k",
})  # fmt: skip
_TOKENS: Final = frozenset({"add_special_tokens", "truncate_prompt_tokens", "truncation_side"})
_WORDS: Final = frozenset({
    "allowed_token_ids", "bad_words", "min_tokens", "spaces_between_special_tokens", "thinking_token_budget",
})  # fmt: skip

VLLM: Final[Mapping[str, frozenset[str]]] = {
    CHAT: _GENERATION | _TOKENS | _WORDS | {
        "add_generation_prompt", "chat_template_kwargs", "continue_final_message", "documents", "echo",
        "include_reasoning",
    },
    COMPLETIONS: _GENERATION | _TOKENS | _WORDS | {"response_format"},
    RESPONSES: _GENERATION | {
        "chat_template_kwargs", "frequency_penalty", "include_reasoning", "logit_bias", "presence_penalty", "seed",
        "stop",
    },
    EMBEDDINGS: _TOKENS,
}  # fmt: skip

#: All that a request of an engine (`jobs.fleet.models_file.EngineKind`) may have, by URL.
_TAKEN: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "vllm": {
        url: OPENAI[url] | VLLM[url] | HANDLED[url] | ({"truncate"} if url == EMBEDDINGS else set(RETIRED))
        for url in OPENAI
    },
    "embed": {
        EMBEDDINGS: OPENAI[EMBEDDINGS] | HANDLED[EMBEDDINGS] | {"input_type", "truncate", "truncate_prompt_tokens"}
    },
    "rerank": {RERANK: frozenset({"model", "documents", "query", "return_documents", "top_n"})},
}


def unknown(engine: str, url: str, names: Iterable[str]) -> str | None:
    """Return the first of `names` that the engine does not know.

    Return None if the engine knows all names, or checks them itself.
    `names` are the fields that have a value: null means "not given".
    """
    taken = _TAKEN.get(engine, {}).get(url)
    return None if taken is None else next((name for name in names if name not in taken), None)


def message(name: str) -> str:
    """Return the error text for an unknown field."""
    return f"Unknown parameter: '{quote(name)}'."


def quote(name: str) -> str:
    """Return the name as messages quote it, because a client's name may have any length."""
    return name if len(name) <= _QUOTED else name[:_QUOTED] + "…"
