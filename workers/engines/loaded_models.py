"""Tell which versions of models the engines of this process serve.

packaged   the package and its version
repo       the repository and the commit
path       a fingerprint of the folder: the sizes of its weights, and the beginning, middle and end of each file
urls       the name at the servers, whose weights nobody here knows
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jobs.fleet.checkpoint import card_of
from jobs.fleet.models_file import EngineKind, ModelConfig
from jobs.registry.base_versions import LoadedModel
from workers.engines.model_folders import package_version_of
from workers.engines.router import Router

#: Bytes that are read of a file of weights at each of three places: all tensors change where a model is trained on.
_SAMPLE: Final = 1 << 20
_ENDPOINT: Final = "listed by its server"


def describe_models(router: Router) -> Iterator[LoadedModel]:
    """Yield the models that can be asked now: those of the models file, and those that servers list."""
    for name in router.reachable_models:
        if name in router.discovered_models:
            yield LoadedModel(name, EngineKind.HTTP, _ENDPOINT, _hash(_ENDPOINT))
        elif model := router.registry.models.get(name):
            yield _describe(model)


def _describe(model: ModelConfig) -> LoadedModel:
    source, license_ = model.source, model.license
    if source.packaged:
        text = f"{source.packaged} {package_version_of(source.packaged)}".strip()
    elif source.path:
        license_ = license_ or card_of(source.path).license
        return LoadedModel(model.name, model.engine, source.path.name, _hash_folder(source.path), license_)
    else:
        text = f"{source.repo}@{source.revision}" if source.repo else model.upstream
    return LoadedModel(model.name, model.engine, text, _hash(text), license_)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_folder(folder: Path) -> str:
    """Return a hash of samples of a folder's weights; files that cannot be read are left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        try:
            with path.open("rb") as weights:
                size = path.stat().st_size
                digest.update(f"{path.name} {size}\n".encode())
                for start in (0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)):
                    weights.seek(start)
                    digest.update(weights.read(_SAMPLE))
        except OSError:
            continue
    return digest.hexdigest()
