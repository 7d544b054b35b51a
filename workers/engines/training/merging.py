"""Merge an adapter into its base: `python -m workers.engines.training.merging ADAPTER BASE OUTPUT [FOLDER]`.

    base in float32 ─▶ with the adapter ─▶ probes as in training? ─▶ one set of weights, in the base's dtype ─▶ OUTPUT
                                               └─ no: another base, nothing is written

BASE is a name of the models file, whose source is used unless FOLDER names the base's files. The tokenizer and the chat
template are those of the adapter's folder.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from jobs.fleet.models_file import Models, ModelsFileError
from jobs.registry.manifests import MANIFEST, decode_manifest
from jobs.settings import settings
from workers.engines import model_folders, probes
from workers.engines.model_folders import ModelUnavailable
from workers.engines.port import Score

_NEEDED: Final = ("peft", "torch", "transformers")
#: Files of an adapter's folder that a model of its own does not have.
_OF_ADAPTERS: Final = ("adapter_config.json", "adapter_model.safetensors", probes.FILE, MANIFEST)


class CannotMerge(Exception):
    """The adapter cannot be merged with this base, or not here."""


def main(adapter: str, base: str, output: str, folder: str = "") -> None:
    """Merge, or end with the reason in one line."""
    try:
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise CannotMerge(f"merging needs the extra `train`; not installed: {', '.join(missing)}")
        source, revision = (folder, None) if folder else _source(base)
        merge(source, revision, Path(adapter), Path(output))
    except (CannotMerge, ModelsFileError, ModelUnavailable) as error:
        sys.exit(str(error))


def merge(base: str, revision: str | None, adapter: Path, output: Path) -> None:
    """Write the merged model to a folder. Raises CannotMerge when the adapter was trained on another base."""
    import peft
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    dtype = transformers.AutoConfig.from_pretrained(base, revision=revision).dtype or torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=torch.float32)
    try:
        tuned = peft.PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:  # shapes or layers that this base does not have
        raise CannotMerge(f"the adapter does not fit {base}: {str(error).splitlines()[0]}") from error
    _check(tuned, adapter, base)
    tuned.merge_and_unload().to(dtype).save_pretrained(output)
    for path in adapter.iterdir():
        if path.is_file() and path.name not in _OF_ADAPTERS:
            shutil.copyfile(path, output / path.name)


def _source(name: str) -> tuple[str, str | None]:
    """Return the folder or the hub's name of a base, and its revision. Raises CannotMerge, ModelUnavailable."""
    config = settings()
    registry = Models(config).now()
    model = registry.base(name) or registry.resolve(name)
    if model is None or model.source.urls:
        raise CannotMerge(f"no models file here has weights of '{name}': name their folder with --base")
    return model_folders.source_of(model, config), model.source.revision


def _check(tuned: Any, adapter: Path, base: str) -> None:
    """Compare base and adapter with what the trainer computed. Raises CannotMerge.

    A trainer with a base of 4 bits differs from any other as far as their bases alone do.
    """
    from workers.engines.training import probing

    known, alone = probes.read(adapter), list[Score]()
    if _method(adapter) == "qlora":
        with tuned.disable_adapter():
            alone = probing.score(tuned, known)
    comparison = probes.compare(known, probing.score(tuned, known), alone)
    if comparison.is_refused:
        raise CannotMerge(f"the adapter was trained on another base than {base}: {comparison}")
    if comparison.difference > comparison.allowed:
        sys.stderr.write(f"warning: {comparison}\n")


def _method(adapter: Path) -> str:
    """Return how an adapter was trained, as its manifest says."""
    path = adapter / MANIFEST
    return str(decode_manifest(path.read_bytes()).run.get("peft")) if path.is_file() else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
