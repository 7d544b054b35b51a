"""Re-ranking in this process: how well each of many texts answers a query, by a cross-encoder, which reads both
together. `workers.engines.batching` is how pairs of many requests are computed.

Importing this module does not import torch; `start` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.requests.endpoints import RERANK
from workers.engines.batching import BatchingEngine
from workers.engines.encoder_pool import Job, Piece
from workers.engines.port import Answer
from workers.engines.rerank_model import CrossModel
from workers.engines.rerank_request import Asked, read, write


class RerankEngine(BatchingEngine[CrossModel]):
    """`source` is a folder or a hub's name; a callable finds it out at the start, in the worker thread."""

    url = RERANK

    def _load(self, source: str) -> CrossModel:
        return CrossModel(source, self._revision, self._args)

    def _read(self, model: CrossModel, body: Mapping[str, Any]) -> tuple[Asked, Sequence[int]]:
        asked, most = read(body), model.characters
        return asked, [min(most, len(asked.query)) + min(most, len(text)) for text in asked.texts]

    def _tokenise(self, model: CrossModel, pieces: Sequence[Piece]) -> list[list[Any]]:
        asked = [(piece.job.asked, piece.job.asked.texts[piece.first : piece.last]) for piece in pieces]
        pairs = iter(model.pairs_of([(one.query, text) for one, texts in asked for text in texts]))
        return [[next(pairs) for _ in texts] for _, texts in asked]

    def _forward(self, model: CrossModel, batch: list[Any]) -> list[float]:
        return model.scores(batch)

    def _write(self, job: Job) -> Answer:
        return write(job.asked, self._names[0], job.found, job.tokens)
