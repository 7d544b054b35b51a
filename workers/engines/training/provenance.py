"""What a training depends on, for its manifest: the weights of its base, the versions of libraries, the hardware."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from transformers.utils import cached_file

from jobs.fleet.checkpoint import card_of
from workers.engines.model_folders import weights_sha256
from workers.engines.training.protocol import Spec

#: The packages whose versions may change the result.
PACKAGES: Final = ("nightmill", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def describe_base(spec: Spec) -> dict[str, Any]:
    """Return the revision, the licence and the SHA-256 of the base."""
    folder = Path(str(cached_file(spec.base, "config.json", revision=spec.revision))).parent
    card = card_of(folder)
    return {"sha256": weights_sha256(folder), "revision": spec.revision, "license": spec.license or card.license}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose versions may change the result."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def device() -> str:
    """Return the name of the GPU; `cpu` where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def hardware() -> dict[str, Any]:
    """Return the machine that trains: its devices, the architecture and number of its cores, and its system."""
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"devices": devices, "machine": platform.machine(), "cpus": os.cpu_count(), "system": platform.system()}
