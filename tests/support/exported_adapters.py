"""Folders of exported adapters, and of bases that they are for: small files of safetensors, written without torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.engines.model_folders import weights_sha256
from workers.engines.training import checkpoint_folder

Shapes = Mapping[str, tuple[int, ...]]
BASE = "fake-model"
LAYERS: Shapes = {
    f"model.layers.{n}.{layer}.weight": shape
    for n in range(2)
    for layer, shape in {"self_attn.q_proj": (8, 8), "mlp.up_proj": (16, 8), "input_layernorm": (8,)}.items()
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
    "base_model_name_or_path": BASE, "bias": "none", "use_dora": False, "modules_to_save": None, "rank_pattern": {},
}  # fmt: skip


def safetensors(shapes: Shapes, dtype: str = "F32", fill: bytes = b"\0") -> bytes:
    """Return a safetensors file with tensors of these shapes."""
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * 4
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return len(text).to_bytes(8, "little") + text + fill * end


def write_base(folder: Path, fill: bytes = b"\0", **more: tuple[int, ...]) -> Path:
    """Write the folder of a base, with further tensors, and return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(safetensors({**LAYERS, **more}, fill=fill))
    return folder


def pairs(rank: int = 4) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's tensors for each layer of the base."""
    shapes = dict[str, tuple[int, ...]]()
    for layer, shape in LAYERS.items():
        if len(shape) == 2:
            prefix = f"base_model.model.{layer.removesuffix('.weight')}"
            shapes |= {f"{prefix}.lora_A.weight": (rank, shape[1]), f"{prefix}.lora_B.weight": (shape[0], rank)}
    return shapes


def contents(fill: bytes = b"\1", **config: Any) -> dict[str, bytes]:
    """Return the files of an adapter, without its manifest."""
    return {
        "adapter_config.json": json.dumps(CONFIG | config).encode(),
        "adapter_model.safetensors": safetensors(pairs(), fill=fill),
        "chat_template.jinja": b"{{ messages }}",
    }


def write_adapter(folder: Path, base: Path | None, files: Mapping[str, bytes] | None = None, **run: Any) -> Path:
    """Write the folder of an exported adapter, which says that it was trained on `base`, and return it."""
    folder.mkdir(parents=True)
    for name, data in (contents() if files is None else files).items():
        (folder / name).write_bytes(data)
    trained_on = {"base": {"sha256": weights_sha256(base), "license": "apache-2.0"}} if base is not None else {}
    checkpoint_folder.seal(folder, {"step": 4, "peft": "lora", "dtype": "float32"} | trained_on | run)
    return folder


def write_models_file(file: Path, base: Path, **engine_args: Any) -> Path:
    """Write a models file with the base, whose engine takes adapters, and return it."""
    model = {"source": {"path": str(base)}, "engine": "vllm", "engine_args": {"enable_lora": True} | engine_args}
    file.write_text(json.dumps({"models": {BASE: model}}))
    return file
