"""4-bit weights (nf4) through bitsandbytes: whether this machine computes with them, and how a base is loaded so.

bitsandbytes has kernels for some devices only, and says so only when one is called: a small layer is tried.
"""

from typing import Any, Final

import torch

from workers.engines.foreign_errors import ForeignCall

_FEATURES: Final = 64  # of the layer that is tried: one block of weights a row
_ERROR: Final = 0.3  # relative, of 4-bit weights against the weights themselves: about 0.1 is usual


def nf4_fault() -> str | None:
    """Return why this machine cannot train with 4-bit weights; None where it can."""
    try:
        import bitsandbytes
    except ImportError:
        return "The package bitsandbytes is not installed."
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with ForeignCall() as trial:
        error = _try_layer(bitsandbytes.nn, device)
    if trial.error is not None:  # a missing kernel shows as any error of the library or of torch
        return f"bitsandbytes does not compute with nf4 on this machine: {trial.error}"
    return None if error < _ERROR else f"nf4 is wrong by {error:.0%} on this machine."


def _try_layer(nn: Any, device: str) -> float:
    """Run a layer forwards and backwards; return the larger relative error of its output and its gradient."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(_FEATURES, _FEATURES, generator=generator)
    inputs = torch.randn(8, _FEATURES, generator=generator).to(device).requires_grad_()
    layer = nn.Linear4bit(_FEATURES, _FEATURES, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer = layer.to(device)
    output = layer(inputs)
    output.sum().backward()
    exact = inputs.detach() @ weight.to(device).T
    gradient = weight.to(device).sum(0).expand_as(inputs)
    return max(_relative_error(output.detach(), exact), _relative_error(inputs.grad, gradient))


def _relative_error(value: Any, exact: Any) -> float:
    return float((value - exact).norm() / exact.norm())


def config(dtype: str) -> Any:
    """Return how transformers loads a base in 4 bits, computing in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
