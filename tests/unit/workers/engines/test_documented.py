"""The documented fields of a body reach an engine."""

import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from jobs.fleet.models_file import EngineKind
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from jobs.requests.fields import HANDLED, OPENAI, RETIRED, VLLM, unknown
from tests.support.vllm_protocol import CLASSES, fields_of
from workers.engines.documented import (
    STEERING,
    body_for_server,
    body_for_vllm,
    malformed_field,
    refuse_unknown,
    untranslated,
)
from workers.engines.port import Request

#: vLLM's own fields that a request here may not have, for what they do.
REFUSED = {
    "beams, each a request of its own": {"length_penalty", "use_beam_search"},
    "another form of the answer than OpenAI's": {
        "embed_dtype", "endianness", "padding", "return_prompt_text", "return_token_ids", "return_token_offsets",
        "return_tokens_as_token_ids", "use_activation",
    },
    "refused for every engine": {"prompt_embeds", "prompt_logprobs"},
    "work in the engine that nothing bounds": {"repetition_detection"},
}  # fmt: skip
#: Of vLLM's rerank and of its other kinds of embeddings, which only servers have.
ELSEWHERE = {
    "documents", "instruction", "max_tokens_per_doc", "max_tokens_per_query", "messages", "query", "top_n",
}  # fmt: skip
#: What each engine in a worker's process serves, by one of its URLs.
ENGINES = (("vllm", CHAT), ("vllm", EMBEDDINGS), ("embed", EMBEDDINGS), ("rerank", "/v1/rerank"))
SDK = {
    CHAT: [chat_create_params.CompletionCreateParamsBase],
    COMPLETIONS: [completion_create_params.CompletionCreateParamsBase],
    RESPONSES: [response_create_params.ResponseCreateParamsBase],
    EMBEDDINGS: [embedding_create_params.EmbeddingCreateParams],
}
SERVERS = {"RerankRequest"} | {
    f"Embedding{kind}Request" for kind in ("Chat", "BatchChat", "ChatInput", "BatchChatInput")
}


def test_a_field_that_vllm_is_not_to_see_is_never_passed_on() -> None:
    steering = {"priority": -1, "cache_salt": "x", "kv_transfer_params": {}, "chat_template": "", "vllm_xargs": {}}

    for url in OPENAI:
        assert body_for_vllm(url, {"model": "m", **steering}) == {"model": "m"}
        assert all(unknown("vllm", url, [name]) == name for name in steering)


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
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
        ("/v1/responses", {"prompt_cache_retention": "24h", "background_options": {}, "access_programs": {}}, None),
        ("/v1/embeddings", {"input": "x"}, None),
    ],
)
def test_unsupported_field_is_reported_only_if_answer_would_change(
    url: str, fields: dict[str, object], param: str | None
) -> None:
    found = untranslated(url, {"model": "m", **fields})

    assert (found and found[0]) == param
    assert found is None or found[1].startswith(f"{param} is not supported")
    assert unknown("vllm", url, fields) is None, "it is OpenAI's"


def test_null_means_not_given() -> None:
    assert body_for_vllm(CHAT, {"model": "m", "max_tokens": None, "seed": 0}) == {"model": "m", "seed": 0}


def test_control_fields_are_not_forwarded_to_server() -> None:
    steering = {
        "priority": -1000,
        "cache_salt": "victim-project",
        "kv_transfer_params": {"remote_host": "10.0.0.1"},
        "chat_template": "{{ 1/0 }}",
        "mm_processor_kwargs": {"a": 1},
    }
    body = {"model": "m", "top_k": 5, "response_format": {"type": "text"}}

    assert body_for_server(body | steering, "m") == body
    assert body_for_server(body | steering, "org/m", "mine") == body | {"model": "org/m", "cache_salt": "mine"}
    assert body_for_server(body, "m") is body


def test_a_templates_switches_reach_it_and_no_template() -> None:
    switches = {"enable_thinking": False, "chat_template": "x", "tokenize": False, "tools": [{}]}

    assert body_for_server({"model": "m", "chat_template_kwargs": switches}, "m") == {
        "model": "m",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert body_for_server({"model": "m", "chat_template_kwargs": "odd"}, "m") == {
        "model": "m",
        "chat_template_kwargs": {},
    }


@pytest.mark.parametrize(
    ("url", "own"),
    [
        (CHAT, {"top_k": 5, "min_p": 0.1, "bad_words": ["x"], "structured_outputs": {"choice": ["a"]}}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}, "continue_final_message": True}),
        (COMPLETIONS, {"top_k": 5, "min_tokens": 2, "stop_token_ids": [7], "response_format": {"type": "json_object"}}),
        (RESPONSES, {"top_k": 5, "repetition_penalty": 1.1, "seed": 4, "stop": ["x"]}),
        (EMBEDDINGS, {"truncate_prompt_tokens": 8, "truncation_side": "left"}),
    ],
)
def test_documented_vllm_fields_are_forwarded(url: str, own: dict[str, object]) -> None:
    assert body_for_vllm(url, {"model": "m", **own, "seed": own.get("seed")}) == {"model": "m", **own}
    assert unknown("vllm", url, own) is None


def test_a_template_is_no_switch_of_a_template() -> None:
    body = {"model": "m", "chat_template_kwargs": {"chat_template": "x"}}

    assert body_for_vllm(CHAT, body) == {"model": "m", "chat_template_kwargs": {}}


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS, RESPONSES])
@pytest.mark.parametrize(
    ("old", "constraint"),
    [
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_regex": "[ab]+", "guided_json": None}, {"regex": "[ab]+"}),
        ({"guided_choice": ["yes", "no"]}, {"choice": ["yes", "no"]}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"guided_choice": ["a"], "guided_regex": "a"}, {"choice": ["a"], "regex": "a"}),  # which vLLM refuses
    ],
)
def test_a_retired_constraint_is_translated(url: str, old: dict[str, object], constraint: dict[str, object]) -> None:
    body = {"model": "m", **old}

    assert body_for_vllm(url, body) == {"model": "m", "structured_outputs": constraint}
    assert (unknown("vllm", url, old), malformed_field(url, body)) == (None, None)


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        (CHAT, {"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}, "guided_choice"),
        (CHAT, {"guided_choice": ["a"], "structured_outputs": None}, None),
        (CHAT, {"structured_outputs": "a"}, "structured_outputs"),
        (CHAT, {"top_k": 1 << 31}, "top_k"),
        (CHAT, {"top_k": "5"}, "top_k"),
        (CHAT, {"thinking_token_budget": 1e300}, "thinking_token_budget"),
        (CHAT, {"top_k": -1, "thinking_token_budget": 0}, None),
        (EMBEDDINGS, {"truncate": "yes"}, "truncate"),
        (EMBEDDINGS, {"truncate": True}, None),
    ],
)
def test_a_value_that_vllm_must_not_see_is_named(url: str, fields: dict[str, object], param: str | None) -> None:
    found = malformed_field(url, {"model": "m", **fields})

    assert (found and found[0]) == param


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"truncate": True}, {"truncate_prompt_tokens": -1}),
        ({"truncate": True, "truncate_prompt_tokens": 9}, {"truncate_prompt_tokens": 9}),
        ({"truncate": False, "truncate_prompt_tokens": 9}, {}),
        ({"truncate": None, "truncate_prompt_tokens": 9}, {"truncate_prompt_tokens": 9}),
    ],
)
def test_an_embedding_is_truncated_in_vllms_words(given: dict[str, object], expected: dict[str, object]) -> None:
    assert body_for_vllm(EMBEDDINGS, {"model": "m", "input": "x", **given}) == {"model": "m", "input": "x", **expected}


@pytest.mark.parametrize("engine", ["vllm", "embed", "rerank"])
def test_an_unknown_field_is_refused_by_its_name(engine: str) -> None:
    url = "/v1/rerank" if engine == "rerank" else EMBEDDINGS
    for name, shown in (("foo", "foo"), ("x" * 1000, "x" * 64 + "…")):
        refused = refuse_unknown(engine, Request(url, {"model": "m", "null": None, name: 1}, "req_1"))

        assert refused is not None
        assert refused.status == 400
        assert msgspec.json.decode(refused.body)["error"] == {
            "message": f"Unknown parameter: '{shown}'.",
            "type": "invalid_request_error",
            "param": shown,
            "code": "unknown_parameter",
        }


def test_a_server_judges_its_fields_itself() -> None:
    assert refuse_unknown("http", Request(CHAT, {"model": "m", "foo": 1}, "req_1")) is None


def test_the_engines_are_those_of_the_models_file() -> None:
    assert all(unknown(kind, url, ["foo"]) == "foo" for kind, url in ENGINES)
    assert {kind for kind, _ in ENGINES} == set(EngineKind) - {EngineKind.HTTP}


def test_no_field_that_is_taken_steers_a_server() -> None:
    for url in OPENAI:
        assert not (OPENAI[url] | VLLM[url]) & STEERING
        assert not (OPENAI[url] | VLLM[url]) & (HANDLED[url] | RETIRED.keys())


def test_every_vllm_protocol_field_is_classified() -> None:
    """A field that vLLM gains fails this test, and so does one that is promised and that vLLM has no more."""
    refused = set().union(*REFUSED.values()) | STEERING

    for url, name in CLASSES.items():
        theirs = fields_of(name)
        assert len(theirs) > 10
        assert VLLM[url] <= theirs, "vLLM has them no more, and would drop them without a word"
        assert theirs - OPENAI[url] - VLLM[url] - HANDLED[url] - refused == set(), "what do they do?"
        assert not RETIRED.keys() & theirs
    known = refused.union(ELSEWHERE, *OPENAI.values(), *VLLM.values())
    assert set().union(*(fields_of(name) for name in SERVERS)) <= known


def test_openais_fields_are_all_known() -> None:
    """Know each field that the SDK sends: known to vLLM, read before it, or a hint without a meaning here."""
    for url, params in SDK.items():
        theirs = set().union(*(kind.__annotations__ for kind in params))
        assert theirs - OPENAI[url] - HANDLED[url] == set()
