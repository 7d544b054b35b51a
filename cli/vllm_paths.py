"""Relative paths in vLLM's flags: the engine of a private run has another working folder than whoever typed them.

No flag says that it takes a path, so what is there decides: a value with a slash that exists, a file with a suffix,
or, of the flags that name a folder by a bare word, that folder. Else `--quantization fp8` would become a path
wherever somebody keeps a folder `fp8`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BARE = frozenset({
    "allowed_local_media_path", "chat_template", "generation_config", "hf_config_path", "model", "spec_model",
    "tokenizer",
})  # fmt: skip
_RESERVED = frozenset({"auto", "vllm"})  # words that `--generation-config` has for itself
_WRITTEN = ("_dir", "_dump_path", "_save_path")  # the engine makes them where they are not there
_NEVER = frozenset({"allowed_media_domains", "ignore_patterns", "served_model_name"})  # theirs is no path from here


def absolute(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the paths that are relative to this folder made absolute, those in objects too."""
    return {name: value if name in _NEVER else _placed(name, value) for name, value in arguments.items()}


def _placed(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _placed(key, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_placed(name, one) for one in value]
    if not isinstance(value, str):
        return value
    if value.startswith("{"):
        return _object(value)
    return str(Path(value).absolute()) if _is_path(name, value) else value


def _object(word: str) -> str:
    """A word that is a JSON object stays as it was written where it has no such path."""
    try:
        said = json.loads(word)
    except (ValueError, RecursionError):
        return word
    placed = _placed("", said)
    return word if placed == said else json.dumps(placed)


def _is_path(name: str, word: str) -> bool:
    if not word or "://" in word:
        return False
    if name.endswith(_WRITTEN):
        return True
    if "/" in word or (name in _BARE and word not in _RESERVED):
        return os.path.exists(word)  # noqa: PTH110 - a template in one line is too long a name for Path.exists
    return bool(Path(word).suffix) and os.path.isfile(word)  # noqa: PTH113 - likewise
