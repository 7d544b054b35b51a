"""vLLM's flags as engine arguments, and the model of a private run."""

from pathlib import Path
from typing import Any

import pytest

from cli.run_batch import _arguments, _model
from cli.trouble import Trouble

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--max-model-len", "2048"], {"max_model_len": 2048}),
        (["--max-model-len=2048", "--enforce-eager"], {"max_model_len": 2048, "enforce_eager": True}),
        (["--no-enable-prefix-caching", "--dtype", "bfloat16"], {"enable_prefix_caching": False, "dtype": "bfloat16"}),
        (["--gpu-memory-utilization", "0.9"], {"gpu_memory_utilization": 0.9}),
        (["--hf-overrides", '{"a": 1}'], {"hf_overrides": {"a": 1}}),
    ],
)
def test_flags_become_engine_arguments(flags: list[str], expected: dict[str, Any]) -> None:
    assert _arguments(flags) == expected


def test_a_word_that_belongs_to_no_flag_is_told() -> None:
    with pytest.raises(Trouble, match="'odd'"):
        _arguments(["odd"])


def test_a_packaged_model_keeps_what_it_needs() -> None:
    fields = _model("gpt-4o-mini", {"max_model_len": 512})

    assert fields["source"] == {"packaged": "smollm2-135m-instruct"}
    assert (fields["engine_args"]["max_model_len"], fields["engine_args"]["dtype"]) == (512, "bfloat16")


def test_a_folder_and_a_hub_model_are_sources(tmp_path: Path) -> None:
    assert _model(str(tmp_path), {})["source"] == {"path": str(tmp_path)}
    assert _model("org/name", {"revision": COMMIT})["source"] == {"repo": "org/name", "revision": COMMIT}
