"""A cross-encoder of sentence-transformers: the half of the re-ranking engine that knows torch. One thread uses it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.fleet.checkpoint import behind_padding
from workers.engines.batching import KERNELS, LONGEST_TOKEN, padded_to
from workers.engines.embed_model import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, threads_of

ARGUMENTS: Final = frozenset({"dtype", "batch_tokens", "threads", "max_length"})
DTYPES: Final = ("float32", "bfloat16")
_UNKNOWN_LENGTH: Final = 512  # tokens, of a model that says nothing of itself


class BadRerankArgs(ValueError):
    """This model, or what is configured for it, can't be used for re-ranking."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The tokens of a query and a text; `types` say which of both each belongs to, where the model wants to know."""

    ids: list[int]
    types: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)


class CrossModel:
    """Loads `source`, a folder or a hub's name. `args` are models.yaml's `engine_args`.

    It computes in float32 unless told otherwise: where bfloat16 is fast, it also rounds neighbours to the same score.
    """

    def __init__(self, source: str, revision: str | None, args: Mapping[str, Any]) -> None:
        _check(args)
        os.environ.setdefault(*KERNELS)
        import torch
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._torch = torch
        gpu = torch.cuda.is_available()
        if not gpu:
            torch.set_num_threads(threads_of(args))
        self._model = CrossEncoder(
            source,
            device="cuda" if gpu else "cpu",
            revision=revision,
            local_files_only=Path(source).is_dir(),
            trust_remote_code=False,
        )
        if self._model.model is None or self._model.num_labels != 1 or len(self._model) != 1:
            raise BadRerankArgs(f"{source}: a re-ranking model is a sequence classifier with one label")
        self._model.to(getattr(torch, args.get("dtype", "float32"))).eval()
        self._tokenizer = self._model.tokenizer
        self.longest = _longest(self._model, args)
        self.characters = self.longest * LONGEST_TOKEN  # of a query, and of a text, that are read
        self.batch_tokens = int(args.get("batch_tokens") or (GPU_BATCH_TOKENS if gpu else CPU_BATCH_TOKENS))

    def pairs_of(self, many: Sequence[tuple[str, str]]) -> list[Pair]:
        """With the model's special tokens; the longer half of a pair is cut until the model takes both.

        A query goes with every text: what is far behind all that a model takes is not even tokenised.
        """
        most = self.characters
        queries, texts = [query[:most] for query, _ in many], [text[:most] for _, text in many]
        found = self._tokenizer(queries, texts, truncation="longest_first", max_length=self.longest, verbose=False)
        types = found.get("token_type_ids") or [None] * len(many)
        return [Pair(ids, of_ids) for ids, of_ids in zip(found["input_ids"], types, strict=True)]

    def scores(self, batch: Sequence[Pair]) -> list[float]:
        """Between 0 and 1, whatever the model's own files say of its last step."""
        torch = self._torch
        given: dict[str, Any] = {"input_ids": [pair.ids for pair in batch]}
        if batch[0].types is not None:
            given["token_type_ids"] = [pair.types for pair in batch]
        with torch.inference_mode():
            width = padded_to(max(map(len, batch)), self.longest)
            padded = self._tokenizer.pad(
                given, padding="max_length", max_length=width, return_tensors="pt", verbose=False
            )
            features = self._model({name: tensor.to(self._model.device) for name, tensor in padded.items()})
            found: list[float] = torch.sigmoid(features["scores"].float().reshape(len(batch))).tolist()
        return found


def _check(args: Mapping[str, Any]) -> None:
    if strange := sorted(args.keys() - ARGUMENTS):
        raise BadRerankArgs(f"{', '.join(strange)}: not among {', '.join(sorted(ARGUMENTS))}")
    if args.get("dtype", "float32") not in DTYPES:
        raise BadRerankArgs(f"dtype {args['dtype']!r}: not among {', '.join(DTYPES)}")


def _longest(model: Any, args: Mapping[str, Any]) -> int:
    """Tokens of a pair. Where tokenizers do not know it, they say a number without meaning."""
    config = model.model.config.to_dict()
    places = int(config.get("max_position_embeddings") or 0)
    places -= behind_padding(config) if places else 0
    known = [int(args.get("max_length") or 0), int(model.max_seq_length or 0), places]
    told = [number for number in known if 0 < number <= (places or 1 << 20)]
    return min(told, default=_UNKNOWN_LENGTH)
