"""What is handed to vLLM and taken from it, without vLLM."""

import os
from pathlib import Path

import pytest

from workers.engines.vllm_serving import argv, plain, prepare_environment


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


def test_answers_are_stripped_to_what_openai_documents() -> None:
    assert plain(Said()) == {
        "choices": [
            {"index": 0, "message": {"content": "hi"}},
            {"index": 1, "message": {"content": None, "reasoning": "so"}},
        ],
        "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
    }


def test_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "DEBUG"})

    prepare_environment(str(tmp_path), {"enforce_eager": True})

    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"


def test_a_model_of_a_hub_may_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})

    prepare_environment("some/model", {})

    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
