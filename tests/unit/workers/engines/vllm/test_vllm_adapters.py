"""How many adapters a vLLM holds by its arguments."""

from typing import Any

import pytest

from jobs.fleet.models_file import PACKAGED_FILE, Registry
from workers.engines.vllm import vllm_adapters


@pytest.mark.parametrize(
    ("args", "limit"),
    [({}, 0), ({"enable_lora": True}, 0), ({"enable_lora": True, "max_loras": 3}, 2), ({"max_loras": 3}, 0)],
)
def test_the_last_slot_stays_empty(args: dict[str, Any], limit: int) -> None:
    """A CPU applies its weights to requests without an adapter."""
    assert vllm_adapters.limit_of(args) == limit


def test_the_packaged_model_holds_eight() -> None:
    model = Registry.read(PACKAGED_FILE).models["smollm2-135m-instruct"]

    assert vllm_adapters.limit_of(model.engine_args) == 8
