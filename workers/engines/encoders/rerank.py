"""Re-rank in this process: score how well each text answers a query, by a cross-encoder that reads both.

    {model, query, documents, top_n?, return_documents?}
        ─▶ {id, model, results: [{index, relevance_score, document?}], usage}

These are the request and the answer of POST /v1/rerank, in the shape that vLLM, Jina and Cohere share. Results are
sorted by score, the best first. `documents` are texts or `{"text": …}`. With `return_documents`, which is the default
as with Jina and vLLM, each result repeats its document.

`workers.engines.encoders.batching` computes the pairs of many requests together. Importing this module does not import
torch; `RerankEngine.start` does.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.fleet.checkpoint import padding_offset
from jobs.fleet.models_file import EngineKind
from jobs.ids import new_id
from jobs.requests.endpoints import RERANK
from workers.engines.encoders.batching import KERNELS, MAX_TOKEN_LENGTH, BatchingEngine, Unacceptable, padded_width
from workers.engines.encoders.embed_model import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, threads_of
from workers.engines.encoders.encoder_pool import EncoderTask, TaskSlice
from workers.engines.port import Answer, Usage

MAX_DOCUMENTS: Final = 1000  # Cohere's limit
DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class RerankInput:
    """A valid request. The answer has `top_n` results at most; `returned` says whether they repeat their documents."""

    query: str
    texts: list[str]
    top_n: int
    returned: bool


def read(body: Mapping[str, Any]) -> RerankInput:
    """Check a body. Raises Unacceptable."""
    query = body.get("query")
    if not isinstance(query, str) or not query.strip():
        raise Unacceptable("query must be a text that is not empty.", param="query")
    texts, returned = _texts(body.get("documents")), body.get("return_documents")
    if not isinstance(returned, bool | None):
        raise Unacceptable("return_documents must be true or false.", param="return_documents")
    return RerankInput(query, texts, _result_count(body.get("top_n"), len(texts)), returned is not False)


def _texts(documents: Any) -> list[str]:
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_DOCUMENTS:
        raise Unacceptable(f"documents must be an array of 1 to {MAX_DOCUMENTS} texts.", param="documents")
    return [_text(document, n) for n, document in enumerate(documents)]


def _text(document: Any, n: int) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise Unacceptable("a document is a text, or an object with a text.", param=f"documents[{n}]")
    return text


def _result_count(top_n: Any, count: int) -> int:
    if top_n is None:
        return count
    if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
        raise Unacceptable("top_n must be an integer of at least 1.", param="top_n")
    return min(top_n, count)


def write(request: RerankInput, model: str, scores: Sequence[float], tokens: int) -> Answer:
    """Return the answer to a request; `scores` are those of its texts, in their order."""
    best = sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))[: request.top_n]
    results = [_result(request, index, score) for index, score in best]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"id": new_id("rerank-"), "model": model, "results": results, "usage": usage}
    return Answer(200, msgspec.json.encode(body), Usage(tokens))


def _result(request: RerankInput, index: int, score: float) -> dict[str, Any]:
    document = {"document": {"text": request.texts[index]}} if request.returned else {}
    return {"index": index, "relevance_score": round(score, DIGITS), **document}


# The model, on torch. One thread uses it.

ARGUMENTS: Final = frozenset({"dtype", "batch_tokens", "threads", "max_length"})
DTYPES: Final = ("float32", "bfloat16")
_UNKNOWN_LENGTH: Final = 512  # tokens, where the model does not name its length


class BadRerankArgs(ValueError):
    """The model or its configuration can't be used for re-ranking."""


@dataclass(frozen=True, slots=True)
class PairTokens:
    """The tokens of a query and a text; `types` say which of the two each belongs to, where the model needs it."""

    ids: list[int]
    types: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)


class CrossModel:
    """A loaded cross-encoder. `source` is a folder or a hub's name, `args` are `engine_args` of models.yaml.

    The default is float32: bfloat16 is faster on some hardware, but rounds the scores of similar texts to one value.
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
        self.characters = self.longest * MAX_TOKEN_LENGTH  # of a query, and of a text, that are read
        self.batch_tokens = int(args.get("batch_tokens") or (GPU_BATCH_TOKENS if gpu else CPU_BATCH_TOKENS))

    def pairs_of(self, many: Sequence[tuple[str, str]]) -> list[PairTokens]:
        """Return the pairs with special tokens; the longer half of a pair is cut until the model takes both.

        The query is part of every pair: characters far beyond the model's length are not tokenised.
        """
        characters = self.characters
        queries, texts = [query[:characters] for query, _ in many], [text[:characters] for _, text in many]
        encoded = self._tokenizer(queries, texts, truncation="longest_first", max_length=self.longest, verbose=False)
        types = encoded.get("token_type_ids") or [None] * len(many)
        return [PairTokens(ids, of_ids) for ids, of_ids in zip(encoded["input_ids"], types, strict=True)]

    def scores(self, batch: Sequence[PairTokens]) -> list[float]:
        """Return scores between 0 and 1: the sigmoid of what the model computes.

        The activation function that the model's own files may name is not used.
        """
        torch = self._torch
        given: dict[str, Any] = {"input_ids": [pair.ids for pair in batch]}
        if batch[0].types is not None:
            given["token_type_ids"] = [pair.types for pair in batch]
        with torch.inference_mode():
            width = padded_width(max(map(len, batch)), self.longest)
            padded = self._tokenizer.pad(
                given, padding="max_length", max_length=width, return_tensors="pt", verbose=False
            )
            features = self._model({name: tensor.to(self._model.device) for name, tensor in padded.items()})
            scores: list[float] = torch.sigmoid(features["scores"].float().reshape(len(batch))).tolist()
        return scores


def _check(args: Mapping[str, Any]) -> None:
    if strange := sorted(args.keys() - ARGUMENTS):
        raise BadRerankArgs(f"{', '.join(strange)}: not among {', '.join(sorted(ARGUMENTS))}")
    if args.get("dtype", "float32") not in DTYPES:
        raise BadRerankArgs(f"dtype {args['dtype']!r}: not among {', '.join(DTYPES)}")


def _longest(model: Any, args: Mapping[str, Any]) -> int:
    """Return the largest number of tokens of a pair: the smallest limit that is known.

    A tokenizer without a limit reports a huge number, which is ignored.
    """
    config = model.model.config.to_dict()
    positions = int(config.get("max_position_embeddings") or 0)
    positions -= padding_offset(config) if positions else 0
    known = [int(args.get("max_length") or 0), int(model.max_seq_length or 0), positions]
    lengths = [number for number in known if 0 < number <= (positions or 1 << 20)]
    return min(lengths, default=_UNKNOWN_LENGTH)


# The engine.


class RerankEngine(BatchingEngine[CrossModel]):
    """The engine of one cross-encoder.

    `source` is a folder or a hub's name, or a function that returns it, called in the worker thread at the start.
    """

    url = RERANK
    kind = EngineKind.RERANK

    def _load(self, source: str) -> CrossModel:
        return CrossModel(source, self._revision, self._args)

    def _read(self, model: CrossModel, body: Mapping[str, Any]) -> tuple[RerankInput, Sequence[int]]:
        request, characters = read(body), model.characters
        return request, [min(characters, len(request.query)) + min(characters, len(text)) for text in request.texts]

    def _tokenise(self, model: CrossModel, slices: Sequence[TaskSlice]) -> list[list[Any]]:
        parts = [(part.job.request, part.job.request.texts[part.first : part.last]) for part in slices]
        pairs = iter(model.pairs_of([(request.query, text) for request, texts in parts for text in texts]))
        return [[next(pairs) for _ in texts] for _, texts in parts]

    def _forward(self, model: CrossModel, batch: list[Any]) -> list[float]:
        return model.scores(batch)

    def _write(self, job: EncoderTask) -> Answer:
        return write(job.request, self._names[0], job.results, job.tokens)
