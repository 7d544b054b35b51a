"""Route a prompt that is too long: have its turns embedded, or have a model with a longer context answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from jobs.fleet import checkpoint
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.requests.endpoints import EMBEDDINGS
from workers.engines.port import Answer, Emit, Engine, EngineBusy, Request, refusal
from workers.inference.peer_client import BROKEN_FILE, RETRY_SECONDS, PeerClient
from workers.middleware.context_strategies import Vectors
from workers.retrieval.ingestion.embedding import Unusable, read_vectors
from workers.runtime.context import Context
from workers.vectors.base import Vector

_TEXTS: Final = 256  # in one request for vectors
_PARAM: Final = "context.embedding_model"
_SPECIAL: Final = 16  # bytes set apart for the tokens that a tokenizer puts around a text
_MAX_PIECE: Final = 2000  # bytes: a longer text has more than one subject


class ModelRouter:
    """Give a prompt that is too long vectors of its turns, or the answer of a model with a longer context.

    Models of this worker's own queue are asked here: queued for another worker of it, a request might wait for itself.
    """

    def __init__(self, context: Context, peers: PeerClient, engine: Engine, queue: str) -> None:
        self._config, self._models = context.config, context.models
        self._peers = peers
        self._engine = engine
        self._queue = queue

    async def route(self, request: Request, emit: Emit | None) -> Answer | Request:
        """Have a worker of the model answer; return the request for a model of this queue.

        Raises EngineBusy, EngineFault.
        """
        route = await self._peers.find_route(request, str(request.body["model"]), request.url, "context.route_long")
        if isinstance(route, Answer):
            return route
        request = replace(request, body={**request.body, "model": route.model})
        return request if route.queue == self._queue else await self._peers.forward(route.queue, request, emit)

    async def piece_bytes(self, model: str | None) -> int:
        """Return how many bytes of a text the model takes: no token is shorter than a byte. Raises EngineBusy."""
        registry = await self._registry()
        known = registry.resolve(self._model(registry, model) or "")
        room = await asyncio.to_thread(checkpoint.room_of, known) if known else checkpoint.UNKNOWN_CONTEXT
        return max(_SPECIAL, min(_MAX_PIECE, room - _SPECIAL))

    async def embed(self, request: Request, model: str | None, texts: Sequence[str]) -> Vectors | Answer:
        """Return the vectors of `texts`, or a refusal. Raises EngineBusy, EngineFault."""
        name = self._model(await self._registry(), model)
        if name is None:
            return refusal(400, "This deployment has no embedding model.", param=_PARAM, code="model_not_found")
        route = await self._peers.find_route(request, name, EMBEDDINGS, _PARAM)
        if isinstance(route, Answer):
            return route
        queue = route.queue
        vectors: list[Vector] = []
        for at in range(0, len(texts), _TEXTS):
            body = {"model": route.model, "input": list(texts[at : at + _TEXTS]), "encoding_format": "base64"}
            embedding_id = f"{request.request_id}-e{at}"
            part = replace(request, url=EMBEDDINGS, body=body, request_id=embedding_id, adapter=None)
            answer = await (
                self._engine.answer(part) if queue == self._queue else self._forward_without_cache(queue, part)
            )
            try:
                vectors += read_vectors(answer)
            except Unusable:
                return _no_vectors(name)
        is_valid = len(vectors) == len(texts) and len({len(vector) for vector in vectors}) == 1
        return vectors if is_valid else _no_vectors(name)

    async def _forward_without_cache(self, queue: str, request: Request) -> Answer:
        """Forward a request whose answer is not cached: it would outlive the files of its batch."""
        return await self._peers.forward(queue, replace(request, body={**request.body, "cache": False}))

    async def _registry(self) -> Registry:
        """Return the models. Raises EngineBusy while the models file cannot be read."""
        try:
            return await asyncio.to_thread(self._models.now)
        except ModelsFileError as error:
            raise EngineBusy(BROKEN_FILE, retry_after=RETRY_SECONDS) from error

    def _model(self, registry: Registry, named: str | None) -> str | None:
        return named or registry.embedder(self._config.embedding_model)


def _no_vectors(model: str) -> Answer:
    message = f"The embedding model `{model}` gave no vectors of this conversation."
    return refusal(502, message, param=_PARAM, code="embedding_failed")
