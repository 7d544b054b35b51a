"""Requests to vLLM and its answers are translated, shown without vLLM."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from workers.engines.adapter_slots import AdapterSlots
from workers.engines.port import EngineBusy, EngineFault, Request
from workers.engines.vllm import vllm_engine
from workers.engines.vllm.vllm_serving import (
    CPU_DEFAULTS,
    INTERACTIVE_SEQUENCES,
    argv,
    cpu_sequences,
    plain,
    plain_event,
    prepare_environment,
    wide,
)


def test_engine_arguments_become_words() -> None:
    options = {"--no-enable-prefix-caching": None}
    args = {
        "max_model_len": 2048,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "headless": False,
        "quantization": None,
        "lora_modules": ["a=b", "c=d"],
        "compilation_config": {"level": 0},
    }

    assert argv(args, options) == [
        "--max-model-len", "2048", "--enforce-eager", "--no-enable-prefix-caching",
        "--lora-modules", "a=b", "c=d", "--compilation-config", '{"level": 0}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "places"),
    [
        ({}, 144 + INTERACTIVE_SEQUENCES),
        ({"max_num_seqs": 4}, 5 + INTERACTIVE_SEQUENCES),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 80}, 80),
        ({"max_num_seqs": 8, "max_num_batched_tokens": "2k"}, 9 + INTERACTIVE_SEQUENCES),
    ],
)
def test_cpu_sequences_reserve_slots_for_interactive_requests(args: dict[str, object], places: int) -> None:
    assert cpu_sequences(args) == places


@pytest.mark.parametrize(
    ("able", "args", "config", "size", "limit", "is_wide"),
    [
        ("AVX512", {}, {}, 10, None, False),
        ("AVX2", {}, {}, 10, None, True),
        ("AVX2", {"max_model_len": 512}, {}, 10, None, True),
        ("AVX2", {"dtype": "auto"}, {}, 10, None, False),
        ("AVX2", {"quantization": "fp8"}, {}, 10, None, False),
        ("AVX2", {}, {"quantization_config": {"quant_method": "awq"}}, 10, None, False),
        ("AVX2", {}, {"text_config": {"quantization_config": {"quant_method": "awq"}}}, 10, None, False),
        ("AVX2", {}, {}, 11, None, False),
        ("AVX2", {}, {}, 10, 43, False),
        ("AVX2", {"kv_cache_memory_bytes": 2}, {}, 10, 44, True),
        ("AVX2", {"kv_cache_memory_bytes": 3}, {}, 10, None, False),
        ("AVX2", {"kv_cache_memory_bytes": "2k"}, {}, 10, None, False),
        ("AVX2", {}, {}, 0, None, False),
        ("AVX2", {}, None, 10, None, False),
        ("AVX2", {}, ["odd"], 10, None, False),
    ],
)
def test_cpu_without_half_precision_uses_float32_if_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    able: str,
    args: dict[str, object],
    config: object,
    size: int,
    limit: int | None,
    is_wide: bool,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: able)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("vllm.utils.cpu_resource_utils.get_cgroup_memory_limit", lambda: limit)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 11, "SC_PAGE_SIZE": 4}.__getitem__)
    monkeypatch.setitem(CPU_DEFAULTS, "kv_cache_memory_bytes", 1)
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    if config is not None:
        (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))

    assert wide(str(tmp_path), args) == ({"dtype": "float32", "kv_cache_memory_bytes": 2} if is_wide else {})


class Said:
    """As much of a pydantic model as `plain` uses."""

    def model_dump(self, *, mode: str, by_alias: bool, exclude: dict[str, bool]) -> dict[str, object]:
        assert mode == "json"
        content = {
            "choices": [
                {"index": 0, "stop_reason": None, "token_ids": None, "message": {"content": "hi", "audio": None}},
                {"index": 1, "message": {"content": None, "reasoning": "so"}},
            ],
            "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1, "created_cache_tokens": 0}},
            "prompt_logprobs": None,
        }
        return {name: value for name, value in content.items() if name not in exclude}


def test_answers_contain_only_documented_openai_fields() -> None:
    assert plain(Said()) == {
        "choices": [
            {"index": 0, "message": {"content": "hi"}},
            {"index": 1, "message": {"content": None, "reasoning": "so"}},
        ],
        "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
    }


@pytest.mark.parametrize(
    ("code", "kind"), [(400, "invalid_request_error"), (500, "server_error"), (None, "server_error")]
)
def test_stream_error_has_openai_shape(code: int | None, kind: str) -> None:
    event = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": code}}

    assert plain_event(event) == {"error": {"message": "no", "type": kind, "param": None, "code": None}}


def test_operator_environment_settings_are_preserved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "DEBUG"})

    prepare_environment(str(tmp_path), {"enforce_eager": True})

    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"


def test_a_model_of_a_hub_may_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})

    prepare_environment("some/model", {})

    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["VLLM_LOGGING_LEVEL"] == "WARNING"


def test_vllm_timeout_defaults_to_engine_hang_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_ENGINE_READY_TIMEOUT_S": "60"})

    prepare_environment("some/model", {}, 300.5)

    assert os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] == "60", "as the operator set it"
    assert os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] == "1503"


def test_threads_are_bound_only_for_single_rank_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    bound = []
    for args in ({}, {"tensor_parallel_size": 2}):
        monkeypatch.setattr(os, "environ", {})
        prepare_environment("some/model", args)
        bound.append(os.environ.get("VLLM_CPU_OMP_THREADS_BIND"))

    assert bound == ["0,1", None]


def test_an_answer_that_is_plain_already_is_passed_on() -> None:
    assert plain({"object": "list", "data": []}) == {"object": "list", "data": []}


def test_vllm_refusals_map_to_busy_fault_or_bad_request() -> None:
    url = "/v1/chat/completions"
    with pytest.raises(EngineBusy, match="Full"):
        vllm_engine._refusal_of(url, 503, "Full.", None)
    with pytest.raises(EngineFault, match="Broken") as broken:
        vllm_engine._refusal_of(url, 500, "Broken.", None)
    lacking = vllm_engine._refusal_of(url, 501, "No tools here.", "tools")

    assert broken.value.answer is not None
    assert (broken.value.answer.status, lacking.status) == (500, 400)
    assert msgspec.json.decode(lacking.body)["error"]["param"] == "tools"


async def test_a_cancelled_request_is_cancelled_though_vllm_answers_it(tmp_path: Path) -> None:
    asked = asyncio.Event()

    class Serving:
        """Takes a cancellation for a client that has gone, as vLLM does."""

        dead = False
        slots = AdapterSlots()

        async def ask(self, url: str, body: dict[str, object]) -> dict[str, str]:
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return {"error": "Client disconnected"}
            raise AssertionError(url, body)

    engine = vllm_engine.VllmEngine("model", ["m"], {}, tmp_path / "pids")
    engine._serving = Serving()  # type: ignore[assignment]
    asking = asyncio.create_task(engine.answer(Request("/v1/chat/completions", {"model": "m"}, "req_1")))
    await asked.wait()

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_vllm_field_is_forwarded_and_unknown_field_is_refused(tmp_path: Path) -> None:
    asked = []

    class Serving:
        dead = False
        slots = AdapterSlots()

        async def ask(self, url: str, body: dict[str, object]) -> dict[str, str]:
            asked.append((url, body))
            raise asyncio.CancelledError

    engine = vllm_engine.VllmEngine("model", ["m"], {}, tmp_path / "pids")
    engine._serving = Serving()  # type: ignore[assignment]
    body = {"model": "m", "prompt": "x", "top_k": 1}

    refused = await engine.answer(Request("/v1/completions", body | {"cache_salt": "mine"}, "req_1"))
    with pytest.raises(asyncio.CancelledError):
        await engine.answer(Request("/v1/completions", body, "req_2"))

    error = msgspec.json.decode(refused.body)["error"]
    assert (refused.status, error["param"], error["code"]) == (400, "cache_salt", "unknown_parameter")
    [(_, reached)] = asked
    assert reached["top_k"] == 1


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("/v1/moderations", {"model": "m"}, 404),
        ("/v1/rerank", {"model": "m"}, 404),
        ("/v1/completions", {"model": "m", "n": "10000"}, 400),
        ("/v1/completions", {"model": "m", "best_of": 2}, 400),
        ("/v1/completions", {"model": "m", "foo": 1}, 400),
        ("/v1/completions", {"model": "m", "top_k": 1 << 70}, 400),
        ("/v1/completions", {"model": "other"}, 404),
    ],
)
async def test_unsupported_request_is_refused_before_vllm_starts(
    tmp_path: Path, url: str, body: dict[str, object], status: int
) -> None:
    engine = vllm_engine.VllmEngine("model", ["m"], {}, tmp_path / "pids")
    request = Request(url, body, "req_1")

    assert (await engine.answer(request)).status == status
    assert await engine.length(request) is None
    assert not (tmp_path / "pids").exists()
