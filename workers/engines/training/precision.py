"""The dtype to train in, chosen by measuring steps of float32 and bfloat16 on this machine.

Many CPUs emulate bfloat16, and are slower with it by a factor; GPUs and CPUs with AMX are faster.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

_STEPS: Final = 3
_GLANCE: Final = 32  # tokens of one row: a step over so few shows whether a dtype is emulated
_HOPELESS: Final = 3.0  # times the other's seconds for such a step: no whole step is measured


def choose(load: Callable[[str], Any], sequences: Sequence[Sequence[int]]) -> tuple[str, dict[str, float]]:
    """Return the faster dtype, and the median seconds of a step by dtype. `sequences` are token ids, one batch.

    Where bfloat16 is emulated, its seconds are estimated: a whole step would take minutes.
    """
    short = [sequences[0][:_GLANCE]]
    glance, usual = _measure(load("float32"), short, sequences, "float32")
    slow, whole = _measure(load("bfloat16"), short, sequences, "bfloat16", _HOPELESS * glance)
    seconds = {"float32": usual, "bfloat16": whole or usual * slow / glance}
    return min(seconds, key=lambda dtype: seconds[dtype]), seconds


def step(model: Any, sequences: Sequence[Sequence[int]], dtype: str) -> None:
    """Compute the gradients of one batch, and drop them."""
    device = _device()
    model.to(device).train()
    _step(model, _batch(sequences, device), device, dtype)


def _measure(
    model: Any, short: Sequence[Sequence[int]], whole: Sequence[Sequence[int]], dtype: str, limit: float = math.inf
) -> tuple[float, float]:
    """Return the seconds of a short step and of a whole one; 0 for that where the short one takes `limit` seconds."""
    device = _device()
    model.to(device).train()
    batch = _batch(short, device)
    glance = min(_step(model, batch, device, dtype) for _ in range(2))
    if glance >= limit:
        return glance, 0.0
    batch = _batch(whole, device)
    median = statistics.median(_step(model, batch, device, dtype) for _ in range(_STEPS))
    del model
    gc.collect()
    return glance, median


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _step(model: Any, batch: dict[str, Any], device: str, dtype: str) -> float:
    began = time.monotonic()
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad()
    loss.item()  # waits for the device
    return time.monotonic() - began


def _batch(sequences: Sequence[Sequence[int]], device: str) -> dict[str, Any]:
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}
