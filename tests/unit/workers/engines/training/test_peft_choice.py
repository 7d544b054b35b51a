"""The choice between adapters on the base and on its 4-bit weights, by the memory that each takes."""

from typing import Any

import pytest

from workers.engines.training import peft_choice

FREE = 1000


@pytest.mark.parametrize(
    ("needs", "base_bytes", "quantizes", "chosen", "tried"),
    [
        ({"lora": 900}, 500, True, "lora", ["lora"]),
        ({"lora": 901, "qlora": 400}, 500, True, "qlora", ["lora", "qlora"]),
        ({"qlora": 400}, 901, True, "qlora", ["qlora"]),  # the weights alone do not fit: loading them is not tried
        ({"lora": 901}, 500, False, None, ["lora"]),
        ({"lora": 901, "qlora": 901}, 500, True, None, ["lora", "qlora"]),
        ({}, 4000, True, None, []),
    ],
)
def test_first_that_fits_into_nine_tenths_of_the_free_memory_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    needs: dict[str, int],
    base_bytes: int,
    quantizes: bool,
    chosen: str | None,
    tried: list[str],
) -> None:
    measured: list[str] = []

    def measure(_load: Any, name: str, _sequences: Any) -> int:
        measured.append(name)
        return needs[name]

    monkeypatch.setattr(peft_choice, "free_bytes", lambda: FREE)
    monkeypatch.setattr(peft_choice, "_measure", measure)

    assert peft_choice.choose(lambda _name: None, [[1]], base_bytes, quantizes=quantizes) == (
        chosen,
        {"free": FREE} | {name: needs[name] for name in tried},
    )
    assert measured == tried


def test_measure_counts_the_model_its_step_and_its_optimizer() -> None:
    """A model of 40 MB: its weights, gradients of the same size, and twice that for AdamW."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(10_000_000))

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
            return type("Output", (), {"loss": (self.weight * self.weight).sum()})

    needed = peft_choice._measure(lambda _name: Model(), "lora", [[1, 2]])

    assert 140e6 < needed < 400e6
