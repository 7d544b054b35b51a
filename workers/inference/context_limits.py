"""How long a model's context is, and its tokenizer where that lies on this machine."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from jobs.fleet.models_file import Model, Registry
from jobs.settings import Settings
from workers.engines.packaged import ModelUnavailable
from workers.engines.router import source_of
from workers.middleware.file_search.packing import Room

_USUAL_CONTEXT: Final = 16_384  # tokens, of a model that does not say
_FILE: Final = "tokenizer.json"


class Rooms:
    """`registry` is asked each time: the models file may change."""

    def __init__(self, config: Settings, registry: Callable[[], Registry]) -> None:
        self._config, self._registry = config, registry

    def of(self, name: str) -> Room:
        """May read files."""
        model = self._registry().resolve(name)
        if model is None:
            return Room(_USUAL_CONTEXT)
        tokenizer = self._tokenizer(model)
        return Room(_context(model, tokenizer), None if tokenizer is None else _read(tokenizer))

    def _tokenizer(self, model: Model) -> Path | None:
        """Nothing is fetched for it."""
        source = model.source
        if source.urls:
            return None
        if source.repo:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(source.repo, _FILE, revision=source.revision)
            return Path(found) if isinstance(found, str) else None
        try:
            file = Path(source_of(model, self._config)) / _FILE
        except ModelUnavailable:
            return None
        return file if file.is_file() else None


def _context(model: Model, tokenizer: Path | None) -> int:
    told = [model.engine_args.get("max_model_len"), model.max_model_len, _config_of(tokenizer)]
    return next((number for number in told if isinstance(number, int) and number > 0), _USUAL_CONTEXT)


def _config_of(tokenizer: Path | None) -> Any:
    file = tokenizer.with_name("config.json") if tokenizer else None
    return json.loads(file.read_bytes()).get("max_position_embeddings") if file and file.is_file() else None


@lru_cache(maxsize=4)
def _read(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
