"""Re-ranking in this process: how well each of many texts answers a query, by a cross-encoder, which reads both
together. `workers.engines.batching` is how pairs of many requests are computed.

Importing this module does not import torch; `start` does.
"""

from collections.abc import Mapping
from typing import Any

from jobs.endpoints import RERANK
from workers.engines.batching import BatchingEngine, Job
from workers.engines.port import Answer
from workers.engines.rerank_model import CrossModel
from workers.engines.rerank_request import Asked, read, write


class RerankEngine(BatchingEngine[CrossModel]):
    """`source` is a folder or a hub's name; a callable finds it out at the start, in the worker thread."""

    url = RERANK

    def _load(self, source: str) -> CrossModel:
        return CrossModel(source, self._revision, self._args)

    def _read(self, model: CrossModel, body: Mapping[str, Any]) -> tuple[Asked, int]:  # noqa: ARG002 (of no model)
        asked = read(body)
        return asked, len(asked.texts)

    def _tokenise(self, model: CrossModel, asked: list[Any]) -> list[list[Any]]:
        pairs = iter(model.pairs_of([(one.query, text) for one in asked for text in one.texts]))
        return [[next(pairs) for _ in one.texts] for one in asked]

    def _forward(self, model: CrossModel, batch: list[Any]) -> list[float]:
        return model.scores(batch)

    def _write(self, job: Job) -> Answer:
        return write(job.asked, self._names[0], job.found, job.tokens)
