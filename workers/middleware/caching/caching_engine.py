"""The cache before an engine: the same port, so that clients who wait, lines of batches and searches have it alike.

    Request ─┬─ /v1/embeddings ───────────▶ vectors ─┐
             ├─ generation that says `cache` ▶ answers ┴─▶ what is missing ─▶ engine
             └─ all else ─────────────────────────────────────────────────▶ engine, or a refusal if it says `cache`

Nothing is shared between projects: whoever asks for what another one has asked for learns nothing of it.
"""

from collections.abc import Callable
from dataclasses import replace

from jobs.requests.endpoints import EMBEDDINGS
from jobs.settings import Settings
from workers.engines.port import Answer, Emit, Engine, Layer, Request, refusal
from workers.middleware.caching.answer_cache import FIELD, URLS, CachedAnswers, objection, without
from workers.middleware.caching.response_cache import Shelf
from workers.middleware.caching.vector_cache import CachedVectors

#: Of the name that a client asks for: the name that it goes by, and which weights those are; None where nobody says.
Identity = Callable[[str], tuple[str, str] | None]


class Cached(Layer):
    """An engine that is not asked twice."""

    def __init__(self, engine: Engine, shelf: Shelf, identity: Identity, config: Settings) -> None:
        super().__init__(engine)
        self._vectors = CachedVectors(engine, shelf, identity, config.embedding_cache_seconds)
        self._answers = CachedAnswers(engine, shelf, identity, config.response_cache_seconds)

    async def answer(self, request: Request) -> Answer:
        said = request.body.get(FIELD)
        if request.url == EMBEDDINGS:
            return await self._embedded(request, said)
        if FIELD not in request.body:
            return await self.engine.answer(request)
        if said is None or said is False:
            return await self.engine.answer(without(request))
        if request.url not in URLS:
            message = f"Invalid 'cache': what {request.url} answers is not cached."
            return refusal(400, message, param=FIELD, code="invalid_value")
        return await self._answers.answer(request)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        if FIELD not in request.body:
            return await self.engine.stream(request, emit)
        said = request.body[FIELD]
        refused = None if said is None or said is False else objection(_streaming(request))
        return refused or await self.engine.stream(without(request), emit)

    async def _embedded(self, request: Request, said: object) -> Answer:
        if not isinstance(said, bool | None):
            return refusal(400, "Invalid 'cache': here it is true or false.", param=FIELD, code="invalid_value")
        asked = without(request) if FIELD in request.body else request
        return await (self.engine.answer(asked) if said is False else self._vectors.answer(asked))


def _streaming(request: Request) -> Request:
    """A question that is streamed need not say so itself."""
    return replace(request, body={**request.body, "stream": True})
