"""The choice of `peft` `auto` by measured memory: an adapter on the base as it is, or on the base in 4 bits.

weights of the base > what is free ─▶ not tried
else one step, its highest memory ─▶ fits ─▶ lora
                                  └─ does not ─▶ the same for qlora ─▶ fits ─▶ qlora, else an error with the numbers
"""

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from jobs.platform import memory, processes
from workers.engines.training import precision

_SHARE: Final = 0.9  # of the free memory that training may take


def choose(
    load: Callable[[str], Any], sequences: Sequence[Sequence[int]], base_bytes: int, quantizes: bool
) -> tuple[str | None, dict[str, int]]:
    """Return `lora` or `qlora`, None where neither fits, and the numbers of bytes by which it was chosen.

    `load` makes the model for a `peft`; `base_bytes` are those of the base's weights.
    """
    free = free_bytes()
    numbers = {"free": free}
    for name, weights in (("lora", base_bytes), ("qlora", base_bytes // 4)):
        if weights > _SHARE * free or (name == "qlora" and not quantizes):
            continue
        needed = numbers[name] = _measure(load, name, sequences)
        if needed <= _SHARE * free:
            return name, numbers
    return None, numbers


def free_bytes() -> int:
    """Return the free memory of the GPU, or of this machine where there is none."""
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else memory.free_bytes()


def _measure(load: Callable[[str], Any], name: str, sequences: Sequence[Sequence[int]]) -> int:
    """Return the most bytes that the model and one step took, and those of AdamW's state, which a step has not made."""
    before = _reset_peak()
    try:
        model = load(name)
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        precision.step(model, sequences, dtype)
        trained = sum(int(values.numel()) for values in model.parameters() if values.requires_grad)
        needed = _peak() - before + 8 * trained
    except torch.OutOfMemoryError:
        needed = free_bytes() + 1
    model = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return needed


def _reset_peak() -> int:
    """Have the peak counted from now on; return the memory that is held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return processes.resident_bytes(os.getpid()) or 0


def _peak() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
