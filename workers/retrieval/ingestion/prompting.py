"""What stands before a store's passages and queries when they are embedded.

The prompt is put there by who asks, and not by the engine: an ingestion records what its vectors were made from, and an
engine that has been running for days may have been started with other prompts, or with some where there are none now.
So every engine that may have some is told to add none; what a server need not know of that stays here.
"""

from dataclasses import dataclass
from typing import Any

from jobs.fleet import checkpoint
from jobs.fleet.models_file import EngineKind, Model, Registry
from jobs.requests.prompts import RAW, Own, Prompts, prompts_of
from jobs.settings import Settings
from workers.retrieval.ingestion import chunk_options


@dataclass(frozen=True, slots=True)
class Prompt:
    """`told`: its engine may have prompts, and is told to add none. vLLM has none, and does not know the field."""

    text: str = ""
    told: bool = True

    def fields(self, texts: list[str]) -> dict[str, Any]:
        """Of a request for the vectors of these texts."""
        return {"input": [self.text + text for text in texts], **({"input_type": RAW} if self.told else {})}


def passage(config: Settings, name: str) -> Prompt:
    """For the model `name`. Raises ModelsFileError, NoTokenizer, TokenizerAway."""
    found, told = _prompts(config, name)
    return Prompt(found.passage, told)


def query(config: Settings, name: str) -> Prompt:
    """For the model `name`. Raises ModelsFileError, NoTokenizer, TokenizerAway."""
    found, told = _prompts(config, name)
    return Prompt(found.query, told)


def _prompts(config: Settings, name: str) -> tuple[Prompts, bool]:
    model = Registry.load(config).resolve(name)
    if model is None:
        return Prompts(), True
    return prompts_of(model.engine_args, _own(config, model)), model.engine is not EngineKind.VLLM


def _own(config: Settings, model: Model) -> Own:
    """Those of its files; a server's model has none that we could see."""
    if model.engine is not EngineKind.EMBED:
        return Own()
    return checkpoint.own_prompts(chunk_options.folder_of(config, model))
