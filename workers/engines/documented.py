"""What of a request's body reaches an engine (`workers.engines.caps` bounds its values).

vLLM takes many fields of its own in the same body: `priority` jumps the queue, `cache_salt` and `kv_transfer_params`
reach into its caches, `chat_template` runs a template of the caller's. None of them is part of the API that is
promised: of vLLM in this process only OpenAI's documented fields are. A model whose `own_fields` is set takes those
that shape an answer too, and refuses the rest by name. A server behind a URL may have an API of its own, which is
passed on, but for what steers the server and not the answer.
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
        "modalities", "moderation", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "service_tier",
        "tool_choice", "tools", "top_logprobs", "verbosity", "web_search_options",
    },
    "/v1/completions": _SAMPLING | {"prompt", "best_of", "echo", "logprobs", "suffix"},
    "/v1/responses": frozenset({
        "model", "access_programs", "background_options", "context_management", "image", "input", "instructions",
        "include", "max_output_tokens", "max_tool_calls", "metadata", "moderation", "parallel_tool_calls",
        "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning", "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools",
        "top_logprobs", "top_p", "truncation", "user",
    }),
    "/v1/embeddings": frozenset({"model", "input", "dimensions", "encoding_format", "user"}),
}  # fmt: skip

#: vLLM's own, which shape the answer as OpenAI's do.
OWN: Final[frozenset[str]] = frozenset({
    "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "chat_template_kwargs",
    "continue_final_message", "documents", "frequency_penalty", "ignore_eos", "include_reasoning",
    "include_stop_str_in_output", "logit_bias", "min_p", "min_tokens", "presence_penalty", "repetition_penalty", "seed",
    "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids", "structured_outputs",
    "thinking_token_budget", "top_k", "truncate_prompt_tokens", "truncation_side",
})  # fmt: skip
#: OpenAI's that ask for another answer, which vLLM passes over without a word. Others that it does not know
#: are hints: `verbosity`, and what is for OpenAI's cache, its bill, its safety.
_UNDONE: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": ("audio", "function_call", "functions", "modalities", "moderation", "web_search_options"),
    "/v1/completions": ("best_of",),
    "/v1/responses": ("context_management", "image", "moderation", "prompt"),
}
_INSTEAD: Final = {"functions": "; `tools` are", "function_call": "; `tool_choice` is"}
#: Said and done before an engine is asked.
_DONE: Final = frozenset({"stream", "stream_options", "store", "background"})

#: By server: what chooses a place in its queue, caches, state or connections, or gives it code or settings.
STEERING: Final[frozenset[str]] = frozenset({
    # vLLM
    "priority", "cache_salt", "kv_transfer_params", "ec_transfer_params", "request_id", "session_id", "vllm_xargs",
    "chat_template", "logits_processors", "guided_decoding_backend", "mm_processor_kwargs", "media_io_kwargs",
    "mm_payload", "return_mm_kwargs", "routed_experts_prompt_start", "logprob_token_ids", "enable_response_messages",
    "previous_input_messages", "watermarking", "stream_interval",
    # SGLang
    "rid", "extra_key", "lora_path", "session_params", "custom_logit_processor", "custom_params", "data_parallel_rank",
    "routed_dp_rank", "disagg_prefill_dp_rank", "bootstrap_host", "bootstrap_port", "bootstrap_room",
    "return_hidden_states", "return_routed_experts",
    # TensorRT-LLM
    "disaggregated_params", "conversation_params", "lora_request",
    # llama.cpp
    "id_slot", "slot_id", "cache_prompt", "n_cache_reuse", "lora", "n_probs", "n_cmpl",
    # text-generation-inference and LoRAX, and servers that load adapters
    "adapter_id", "adapter_source", "adapter_parameters", "adapters", "api_token", "lora_adapter", "lora_adapters",
    "lora_id", "lora_name",
})  # fmt: skip
_TEMPLATE: Final = "chat_template_kwargs"
_NOT_THE_TEMPLATES: Final = frozenset({"chat_template", "tokenize"})  # they are of who renders it


def forwarded(body: Mapping[str, Any], model: str, salt: str = "") -> Mapping[str, Any]:
    """The body for a server that calls the model `model`; with a `salt` (vLLM's), a prompt is cached for that alone."""
    left = body
    if not STEERING.isdisjoint(body):
        left = {name: value for name, value in body.items() if name not in STEERING}
    if _TEMPLATE in left:
        left = {**left, _TEMPLATE: _scalars(left[_TEMPLATE])}
    if left.get("model") != model:
        left = {**left, "model": model}
    return {**left, "cache_salt": salt} if salt else left


def _scalars(value: Any) -> dict[str, Any]:
    """Switches of the model's template, such as `enable_thinking`."""
    found = value.items() if isinstance(value, dict) else ()
    return {name: one for name, one in found if name not in _NOT_THE_TEMPLATES and not isinstance(one, dict | list)}


def documented(url: str, body: Mapping[str, Any], *, own: bool = False) -> dict[str, Any]:
    """The body without what OpenAI doesn't document for this URL, and without nulls: they mean "not given".

    `own`: with vLLM's own fields that shape the answer.
    """
    taken = FIELDS[url] | OWN if own else FIELDS[url]
    left = {name: value for name, value in body.items() if name in taken and value is not None}
    return left | {_TEMPLATE: _scalars(left[_TEMPLATE])} if _TEMPLATE in left else left


def undone(url: str, body: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first field whose wish vLLM would not fulfil, and what to tell of it."""
    for name in _UNDONE.get(url, ()):
        if _asks(name, body):
            return name, f"{name} is not supported{_INSTEAD.get(name, '')}."
    return None


def _asks(name: str, body: Mapping[str, Any]) -> bool:
    """Whether it asks for anything else than what comes without it."""
    value = body.get(name)
    if name == "best_of":
        return isinstance(value, int) and value > (body.get("n") or 1)
    if name == "function_call" and not body.get("functions"):
        return value not in (None, "none", "auto")
    return value not in (None, [], ["text"])


def stray(url: str, body: Mapping[str, Any]) -> str | None:
    """The first field that is neither OpenAI's nor one of vLLM's own that are taken."""
    taken = FIELDS[url] | OWN | _DONE
    return next((name for name, value in body.items() if name not in taken and value is not None), None)
