"""Decide what of a request's body reaches an engine (`workers.engines.caps` bounds its values).

vLLM takes many fields of its own in the same body: `priority` jumps the queue, `cache_salt` and `kv_transfer_params`
reach into its caches, `chat_template` runs a template of the caller's. vLLM in this process gets the fields that
OpenAI documents and those of its own that shape an answer (`jobs.requests.fields`); a request with any other is
refused. A server behind a URL may have an API of its own, which is passed on, but for what steers the server and not
the answer.
"""

from collections.abc import Mapping
from typing import Any, Final

from jobs.requests import fields
from jobs.requests.endpoints import EMBEDDINGS
from workers.engines.port import Answer, Request, refusal

#: Fields of OpenAI's that ask for another answer, and that vLLM ignores silently; `jobs.requests.values` has those that
#: no engine serves. The other fields that vLLM does not know are hints: `verbosity`, and those for OpenAI's cache,
#: billing and safety.
_UNDONE: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/completions": ("best_of",),
    "/v1/responses": ("context_management", "image"),
}
#: By server: fields that choose a position in its queue, its caches, state or connections, or give it code or settings.
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
_STRUCTURED: Final = "structured_outputs"
_TRUNCATE: Final = "truncate_prompt_tokens"
_INTEGERS: Final = ("top_k", "thinking_token_budget")  # vLLM checks the others itself
_MAX_INTEGER: Final = (1 << 31) - 1  # that can be sent to the engine's process
_NOT_THE_TEMPLATES: Final = frozenset({"chat_template", "tokenize"})  # the rendering function's arguments


def body_for_server(body: Mapping[str, Any], model: str, salt: str = "") -> Mapping[str, Any]:
    """Return the body for a server that calls the model `model`. A `salt` (vLLM's) separates the prompt's cache."""
    left = body
    if not STEERING.isdisjoint(body):
        left = {name: value for name, value in body.items() if name not in STEERING}
    if _TEMPLATE in left:
        left = {**left, _TEMPLATE: _scalars(left[_TEMPLATE])}
    if left.get("model") != model:
        left = {**left, "model": model}
    return {**left, "cache_salt": salt} if salt else left


def _scalars(value: Any) -> dict[str, Any]:
    """Return the switches of the model's template, such as `enable_thinking`."""
    options = value.items() if isinstance(value, dict) else ()
    return {
        name: option
        for name, option in options
        if name not in _NOT_THE_TEMPLATES and not isinstance(option, dict | list)
    }


def refuse_unknown(engine: str, request: Request) -> Answer | None:
    """Return the refusal of a request with a field that `engine` does not know; None where it knows them all."""
    given = (name for name, value in request.body.items() if value is not None)
    name = fields.unknown(engine, request.url, given)
    if name is None:
        return None
    return refusal(400, fields.message(name), param=fields.quote(name), code=fields.CODE)


def body_for_vllm(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body as vLLM takes it: without nulls, which mean "not given", and with the names of today's vLLM."""
    taken = fields.OPENAI[url] | fields.VLLM[url]
    left = {name: value for name, value in body.items() if name in taken and value is not None}
    if _TEMPLATE in left:
        left[_TEMPLATE] = _scalars(left[_TEMPLATE])
    if url == EMBEDDINGS:
        return _translate_truncate(left, body.get("truncate"))
    constraints = {now: body[old] for old, now in fields.RETIRED.items() if body.get(old) is not None}
    return left | {_STRUCTURED: constraints} if constraints else left


def _translate_truncate(left: dict[str, Any], truncate: Any) -> dict[str, Any]:
    """Translate `truncate` into vLLM's field."""
    if truncate:
        return {_TRUNCATE: -1} | left
    return left if truncate is None else {name: value for name, value in left.items() if name != _TRUNCATE}


def malformed_field(url: str, body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first field whose value vLLM must not see, and what is wrong with it."""
    for name in _INTEGERS:
        value = body.get(name)
        if value is not None and not (isinstance(value, int) and abs(value) <= _MAX_INTEGER):
            return name, f"{name} must be an integer of at most {_MAX_INTEGER}."
    if url == EMBEDDINGS and not isinstance(body.get("truncate"), bool | None):
        return "truncate", "truncate must be true or false."
    return _constraint_fault(body)


def _constraint_fault(body: Mapping[str, Any]) -> tuple[str, str] | None:
    given = body.get(_STRUCTURED)
    if not isinstance(given, dict | None):
        return _STRUCTURED, f"{_STRUCTURED} must be an object."
    old = next((name for name in fields.RETIRED if body.get(name) is not None), None)
    if old and given is not None:
        return old, f"{old} cannot be given together with {_STRUCTURED}."
    return None


def untranslated(url: str, body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first field that vLLM would ignore, and the error text for it."""
    for name in _UNDONE.get(url, ()):
        if _has_value(name, body):
            return name, f"{name} is not supported."
    return None


def _has_value(name: str, body: Mapping[str, Any]) -> bool:
    """Return whether the value asks for anything else than the default."""
    value = body.get(name)
    if name == "best_of":
        return isinstance(value, int) and value > (body.get("n") or 1)
    return value not in (None, [])
