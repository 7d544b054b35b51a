"""What of a body reaches an engine."""

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.support.services import need
from workers.engines.documented import FIELDS, OWN, STEERING, documented, forwarded, stray, undone

CHAT = "/v1/chat/completions"
#: vLLM's own fields of these requests that a caller may set at a server: they shape the answer, or what is asked.
SHAPING = {
    "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "background", "bad_words",
    "chat_template_kwargs", "continue_final_message", "documents", "embed_dtype", "endianness", "ignore_eos",
    "include_reasoning", "include_stop_str_in_output", "instruction", "length_penalty", "max_tokens_per_doc",
    "max_tokens_per_query", "messages", "min_p", "min_tokens", "padding", "query", "repetition_detection",
    "repetition_penalty", "return_prompt_text", "return_token_ids", "return_token_offsets",
    "return_tokens_as_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids", "store",
    "stream", "stream_options", "thinking_token_budget", "top_k", "top_n", "truncate_prompt_tokens",
    "truncation_side", "use_activation", "use_beam_search",
}  # fmt: skip
#: And what `caps` refuses, or bounds.
BOUNDED = {"echo", "prompt_logprobs", "prompt_embeds", "structured_outputs"}
REQUESTS = {"ChatCompletionRequest", "CompletionRequest", "ResponsesRequest", "RerankRequest"} | {
    f"Embedding{kind}Request" for kind in ("Completion", "Chat", "BatchChat", "ChatInput", "BatchChatInput")
}


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


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
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
        (
            CHAT,
            {"prompt_cache_options": {"mode": "implicit"}, "prompt_cache_retention": "24h", "verbosity": "low"},
            None,
        ),
        ("/v1/completions", {"best_of": 5}, "best_of"),
        ("/v1/completions", {"best_of": 5, "n": 2}, "best_of"),
        ("/v1/completions", {"best_of": 2, "n": 2}, None),
        ("/v1/completions", {"best_of": 1, "n": None}, None),
        ("/v1/responses", {"context_management": [{"type": "compaction"}]}, "context_management"),
        ("/v1/responses", {"prompt": {"id": "pmpt_1"}}, "prompt"),
        ("/v1/responses", {"prompt_cache_retention": "24h", "background_options": {}, "access_programs": {}}, None),
        ("/v1/embeddings", {"input": "x"}, None),
    ],
)
def test_what_would_change_the_answer_is_not_passed_over_without_a_word(
    url: str, fields: dict[str, object], param: str | None
) -> None:
    found = undone(url, {"model": "m", **fields})

    assert (found and found[0]) == param
    assert found is None or found[1].startswith(f"{param} is not supported")
    assert stray(url, fields) is None, "it is OpenAI's"


def test_null_means_not_given() -> None:
    assert documented(CHAT, {"model": "m", "max_tokens": None, "seed": 0}) == {"model": "m", "seed": 0}


def test_what_steers_a_server_does_not_reach_it() -> None:
    steering = {
        "priority": -1000,
        "cache_salt": "victim-project",
        "kv_transfer_params": {"remote_host": "10.0.0.1"},
        "chat_template": "{{ 1/0 }}",
        "mm_processor_kwargs": {"a": 1},
    }
    body = {"model": "m", "top_k": 5, "response_format": {"type": "text"}}

    assert forwarded(body | steering, "m") == body
    assert forwarded(body | steering, "org/m", "mine") == body | {"model": "org/m", "cache_salt": "mine"}
    assert forwarded(body, "m") is body


def test_a_templates_switches_reach_it_and_no_template() -> None:
    switches = {"enable_thinking": False, "chat_template": "x", "tokenize": False, "tools": [{}]}

    assert forwarded({"model": "m", "chat_template_kwargs": switches}, "m") == {
        "model": "m",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert forwarded({"model": "m", "chat_template_kwargs": "odd"}, "m") == {"model": "m", "chat_template_kwargs": {}}


@pytest.mark.parametrize("url", FIELDS)
def test_a_model_may_take_those_of_vllm_that_shape_the_answer(url: str) -> None:
    own = {"top_k": 5, "min_p": 0.1, "structured_outputs": {"choice": ["a"]}, "chat_template_kwargs": {"think": False}}
    body = {"model": "m", **own, "min_tokens": None, "priority": -1, "use_beam_search": True}

    assert documented(url, body, own=True) == {"model": "m", **own}
    assert documented(url, {"model": "m", "chat_template_kwargs": {"chat_template": "x"}}, own=True) == {
        "model": "m",
        "chat_template_kwargs": {},
    }


def test_the_rest_is_named() -> None:
    assert stray(CHAT, {"model": "m", "top_k": 5, "stream": False, "store": True, "priority": None}) is None
    assert stray(CHAT, {"model": "m", "priority": -1, "cache_salt": "x"}) == "priority"


def test_no_field_that_is_taken_steers_a_server() -> None:
    assert not OWN & STEERING
    assert OWN - set().union(*FIELDS.values()) - {"structured_outputs"} <= SHAPING


def test_each_field_of_vllms_protocol_is_known_for_what_it_does() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        need("vLLM's protocol", ModuleNotFoundError("vllm"))
    classes = _classes(Path(found.submodule_search_locations[0]) / "entrypoints")
    names = set().union(*(_fields(name, classes) for name in REQUESTS))

    assert len(names) > 80
    assert names - set().union(*FIELDS.values()) - STEERING - SHAPING - BOUNDED == set()


def _classes(folder: Path) -> dict[str, ast.ClassDef]:
    """Read and not imported, which would take 20 seconds."""
    trees = [ast.parse(path.read_text()) for path in folder.rglob("protocol.py")]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    if name not in classes:
        return set()
    here = {
        node.target.id
        for node in classes[name].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not node.target.id.startswith("_") and "ClassVar" not in ast.unparse(node.annotation)
    }
    return here.union(*(_fields(ast.unparse(base), classes) for base in classes[name].bases))
