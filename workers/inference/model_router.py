"""What a prompt that is too long needs besides its own model: vectors of its turns, or a model that takes more.

Models of this worker's own queue are asked here: in line for another worker of it, the request might wait for itself.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from jobs.fleet import checkpoint
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.requests.endpoints import EMBEDDINGS
from workers.engines.port import Answer, Emit, Engine, EngineBusy, Request, refusal
from workers.inference.client import AGAIN, BROKEN_FILE, Asking
from workers.middleware.context_window.memory_strategy import Vectors
from workers.retrieval.ingestion.embedding_answers import Unusable, read_vectors
from workers.runtime.context import Context
from workers.vectors.base import Vector

_TEXTS: Final = 256  # embedded by one request
_PARAM: Final = "context.embedding_model"
_SPECIAL: Final = 16  # of these, for what the tokenizer puts around a text
_LONGEST_PIECE: Final = 2000  # bytes: what is longer is about more than one thing


class Elsewhere:
    """For the workers of one queue."""

    def __init__(self, context: Context, asking: Asking, engine: Engine, queue: str) -> None:
        self._config, self._models = context.config, context.models
        self._asking = asking
        self._engine = engine
        self._queue = queue

    async def route(self, request: Request, emit: Emit | None) -> Answer | None:
        """None where the model is of this queue. Raises EngineBusy, EngineFault."""
        model = str(request.body["model"])
        queue = await self._asking.place(request, model, request.url, "context.route_long")
        if isinstance(queue, Answer):
            return queue
        return None if queue == self._queue else await self._asking.ask(queue, request, emit)

    async def piece_bytes(self, model: str | None) -> int:
        """How long a text may be for the model to take it: no token is shorter than a byte. Raises EngineBusy."""
        registry = await self._registry()
        known = registry.resolve(self._model(registry, model) or "")
        room = await asyncio.to_thread(checkpoint.room_of, known) if known else checkpoint.UNKNOWN_CONTEXT
        return max(_SPECIAL, min(_LONGEST_PIECE, room - _SPECIAL))

    async def embed(self, request: Request, model: str | None, texts: Sequence[str]) -> Vectors | Answer:
        """Raises EngineBusy, EngineFault."""
        name = self._model(await self._registry(), model)
        if name is None:
            return refusal(400, "This deployment has no embedding model.", param=_PARAM, code="model_not_found")
        queue = await self._asking.place(request, name, EMBEDDINGS, _PARAM)
        if isinstance(queue, Answer):
            return queue
        found: list[Vector] = []
        for at in range(0, len(texts), _TEXTS):
            body = {"model": name, "input": list(texts[at : at + _TEXTS]), "encoding_format": "base64"}
            asked = replace(request, url=EMBEDDINGS, body=body, request_id=f"{request.request_id}-e{at}")
            answer = await (self._engine.answer(asked) if queue == self._queue else self._unkept(queue, asked))
            try:
                found += read_vectors(answer)
            except Unusable:
                return _no_vectors(name)
        sound = len(found) == len(texts) and len({len(one) for one in found}) == 1
        return found if sound else _no_vectors(name)

    async def _unkept(self, queue: str, request: Request) -> Answer:
        """Nothing of a conversation stays in their cache, where it would outlive the files of its batch."""
        return await self._asking.ask(queue, replace(request, body={**request.body, "cache": False}))

    async def _registry(self) -> Registry:
        """Raises EngineBusy while its file is broken: somebody is at it."""
        try:
            return await asyncio.to_thread(self._models.now)
        except ModelsFileError as error:
            raise EngineBusy(BROKEN_FILE, retry_after=AGAIN) from error

    def _model(self, registry: Registry, named: str | None) -> str | None:
        return named or registry.embedder(self._config.embedding_model)


def _no_vectors(model: str) -> Answer:
    message = f"The embedding model `{model}` gave no vectors of this conversation."
    return refusal(502, message, param=_PARAM, code="embedding_failed")
