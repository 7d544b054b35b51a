"""Find the tokenizer, the maximum length and the prompt of a store's embedding model.

A store's documents are cut by the tokens of its embedding model, and chunks never exceed its context.

The caller adds the prompt to a text, not the engine: an ingestion records what its vectors were made from, and a
running engine may have been started with other prompts than the models file has now. So every engine with prompts is
told to add none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from jobs.fleet import checkpoint
from jobs.fleet.checkpoint import UNKNOWN_CONTEXT
from jobs.fleet.models_file import EngineKind, ModelConfig, Registry
from jobs.requests.embedding_prompts import RAW, Own, Prompts, prompts_of
from jobs.settings import Settings
from workers.engines import model_folders
from workers.engines.model_folders import MINILM, ModelUnavailable, materialise, models_dir
from workers.retrieval.parsing.parser import Cutting

#: The version of parsing and cutting: with another number all documents are made anew.
RECIPE: Final = 2
_SEAM: Final = 2  # tokens: where prompt and text meet, a word may be tokenized differently
_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "config.json", "sentence_bert_config.json",
    "config_sentence_transformers.json",
)  # fmt: skip


class NoTokenizer(Exception):
    """The tokenizer of an embedding model cannot be read here."""


class TokenizerUnavailable(Exception):
    """A tokenizer cannot be downloaded or created now."""


def cutting_of(config: Settings, name: str, chunking: Mapping[str, Any]) -> Cutting:
    """Return how to cut the documents of a store with the model `name`.

    Raises: NoTokenizer, TokenizerUnavailable.
    """
    registry = Registry.load(config)
    model = registry.resolve(name)
    folder = folder_of(config, model)
    length = _longest(folder, model)
    strategy = chunking["type"]
    options = chunking[strategy]
    max_tokens = min(int(options["max_chunk_size_tokens"]), length)
    overlap = int(options.get("chunk_overlap_tokens", 0)) * max_tokens // int(options["max_chunk_size_tokens"])
    return Cutting(folder / "tokenizer.json", max_tokens, overlap, strategy)


def recipe(sha256: str, model: str, dimensions: int, chunking: Mapping[str, Any], prompt: str = "") -> str:
    """Return a digest of what a version is made from and how: equal recipes give equal vectors."""
    made = [RECIPE, sha256, model, dimensions, chunking]
    made += [prompt] if prompt else []
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def folder_of(config: Settings, model: ModelConfig | None) -> Path:
    """Return the folder of the model's tokenizer, or of a substitute.

    Raises: NoTokenizer, TokenizerUnavailable.
    """
    try:
        if model is None or _is_guessed(model):
            return materialise(MINILM, models_dir(config))
        if model.source.packaged:
            return materialise(model.source.packaged, models_dir(config))
        if model.source.repo is not None:
            return _ensure_tokenizer(_download(model.source.repo, str(model.source.revision)), models_dir(config))
        folder = model.tokenizer or model.source.path
        assert folder is not None
        return _ensure_tokenizer(folder, models_dir(config))
    except ModelUnavailable as error:
        raise NoTokenizer(str(error)) from error


def _is_guessed(model: ModelConfig) -> bool:
    """Return whether the model's own tokenizer is unknown."""
    embeds_here = model.engine is EngineKind.EMBED and model.source.packaged is not None
    return not (embeds_here or model.tokenizer or model.source.path or model.source.repo)


def _ensure_tokenizer(folder: Path, models: Path) -> Path:
    """Return the folder, or one with the tokenizer that its vocabulary gives."""
    if (folder / "tokenizer.json").is_file():
        return folder
    if not model_folders.has_vocabulary(folder):
        raise NoTokenizer("The embedding model's folder has no tokenizer.json, nor a vocabulary to make one from.")
    try:
        made = model_folders.convert_tokenizer(folder, models, _FILES)
    except model_folders.NotMade as error:
        raise TokenizerUnavailable(f"The tokenizer of {folder} could not be made: {error}") from error
    if made is None:
        raise NoTokenizer("The embedding model's vocabulary makes no tokenizer.")
    return made


@lru_cache(maxsize=16)
def _download(repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = [*_FILES, *model_folders.VOCABULARIES, *model_folders.COMPANIONS]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except OSError as error:
        raise TokenizerUnavailable(f"The tokenizer of {repo} cannot be fetched.") from error


def _longest(folder: Path, model: ModelConfig | None) -> int:
    """Return how many tokens of text the model takes, without special tokens and the passage prompt."""
    own = checkpoint.own_prompts(folder) if model and model.engine is EngineKind.EMBED else Own()
    prompt = prompts_of(model.engine_args if model else {}, own).passage
    return max(16, _context(folder, model) - _framing(folder, prompt) - (_SEAM if prompt else 0))


def _context(folder: Path, model: ModelConfig | None) -> int:
    """Return the model's context; for a server the models file takes precedence over the model's files."""
    if model is None:
        return UNKNOWN_CONTEXT
    own = None if _is_guessed(model) else checkpoint.context_of(folder)
    both = (model.max_model_len, own) if model.source.urls else (own, model.max_model_len)
    return both[0] or both[1] or UNKNOWN_CONTEXT


@lru_cache(maxsize=16)
def _framing(folder: Path, prompt: str) -> int:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return len(tokenizer.encode(prompt).ids)


# ── prompts ──


@dataclass(frozen=True, slots=True)
class EmbeddingPrompt:
    """The text before a passage or a query. `sends_raw`: send a field that tells the engine to add none."""

    text: str = ""
    sends_raw: bool = True

    def fields(self, texts: list[str]) -> dict[str, Any]:
        """Return the request's fields for the vectors of these texts."""
        return {"input": [self.text + text for text in texts], **({"input_type": RAW} if self.sends_raw else {})}


def passage_prompt(config: Settings, name: str) -> EmbeddingPrompt:
    """Return the passage prompt of the model `name`.

    Raises: ModelsFileError, NoTokenizer, TokenizerUnavailable.
    """
    prompts, sends_raw = _prompts(config, name)
    return EmbeddingPrompt(prompts.passage, sends_raw)


def query_prompt(config: Settings, name: str) -> EmbeddingPrompt:
    """Return the query prompt of the model `name`.

    Raises: ModelsFileError, NoTokenizer, TokenizerUnavailable.
    """
    prompts, sends_raw = _prompts(config, name)
    return EmbeddingPrompt(prompts.query, sends_raw)


def _prompts(config: Settings, name: str) -> tuple[Prompts, bool]:
    model = Registry.load(config).resolve(name)
    if model is None:
        return Prompts(), True
    return prompts_of(model.engine_args, _own_prompts(config, model)), model.engine is not EngineKind.VLLM


def _own_prompts(config: Settings, model: ModelConfig) -> Own:
    """Return the prompts in the model's files; those of a server's model are unknown."""
    if model.engine is not EngineKind.EMBED:
        return Own()
    return checkpoint.own_prompts(folder_of(config, model))
