"""Re-rank search results by a model: one of this worker, or one of another queue.

    candidates ─▶ {query, documents} ─┬─ the model is of this queue ──▶ this worker's engine
                                      └─ of another queue ──▶ that queue ──▶ a worker of it

Both ways take the shared lock of `EngineHost`, because an isolated request may wait for the engine.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from jobs.errors import TooManyRequests, Unavailable
from jobs.fleet import access, routing, workers
from jobs.fleet.access import Work
from jobs.fleet.models_file import ModelsFileError
from jobs.fleet.routing import Route
from jobs.ids import new_id
from jobs.inference.client import InferenceClient, last_entry
from jobs.inference.interactive import QueuedRequest
from jobs.requests.endpoints import RERANK
from jobs.retrieval import searches
from jobs.retrieval.searches import FoundChunk, Search
from jobs.usage.minutes import UsageKey
from workers.engines.port import Answer, EngineBusy, Request, Usage, refusal
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost

_PARAM = "ranking_options.ranker"
_AGAIN = 2.0
_ROUNDING = 0.05  # by which a share or a cosine may exceed 0 and 1


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranked(msgspec.Struct):
    results: list[_Result]


_ranked = msgspec.json.Decoder(_Ranked).decode


class Reranking:
    """Order hits by the scores of a model. `queue` is the queue that this worker serves."""

    def __init__(self, context: Context, host: EngineHost, queue: str) -> None:
        self._context, self._host, self._queue = context, host, queue
        self._client = InferenceClient(context.config, context.timings)
        self._logits: set[str] = set()  # models that have returned logits
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="rerank")

    async def close(self) -> None:
        await self._client.close()
        self._threads.shutdown(wait=False)

    async def answer(self, queued: QueuedRequest, priority: int) -> Answer:
        """Answer a request for scores from a worker of another queue. Raises what engines raise."""
        body = msgspec.json.decode(queued.body)
        return await self._host.engine.answer(Request(RERANK, body, queued.id, priority, queued.tenant))

    async def rank(
        self, search: Search, hits: Sequence[FoundChunk], queued: QueuedRequest, priority: int
    ) -> Sequence[FoundChunk] | Answer:
        """Return the hits, best first, with the model's scores from 0 to 1; for several queries the best score of each.

        Some servers return logits: after the first one, the logistic function maps all scores of the model.

        Raises what engines raise.
        """
        if not hits:
            return hits
        loop = asyncio.get_running_loop()
        route = await loop.run_in_executor(self._threads, self._route_of_model, search.ranker, queued)
        if isinstance(route, Answer):
            return _refusal(search.ranker, route)
        model = route.model
        bodies = [_body(model, query, hits) for query in search.queries]
        answers = await asyncio.gather(*(self._ask(route.queue, body, queued, priority) for body in bodies))
        for answer in answers:
            self._context.usage.add_answer(UsageKey(queued.tenant, queued.key_id, model, RERANK), answer)
        scores = [-math.inf] * len(hits)
        for answer in answers:
            if answer.status >= 400:
                return _refusal(search.ranker, answer)
            try:
                given = {result.index: result.relevance_score for result in _ranked(answer.body).results}
                scores = [max(score, given[n]) for n, score in enumerate(scores)]
            except (msgspec.MsgspecError, KeyError):
                return refusal(502, "The re-ranking model gave no score for some texts.", code="engine_error")
        if any(not -_ROUNDING <= score <= 1.0 + _ROUNDING for score in scores):
            self._logits.add(model)
        shown = _logistic if model in self._logits else _clamp
        best = sorted(zip(scores, hits, strict=True), key=lambda pair: -pair[0])
        return [_rescore(hit, shown(score)) for score, hit in best]

    async def _ask(self, queue: str, body: dict[str, object], queued: QueuedRequest, priority: int) -> Answer:
        try:
            if queue == self._queue:
                request = Request(RERANK, body, queued.id, priority, queued.tenant)
                return await self._host.engine.answer(request)
            return await self._ask_worker(queue, body, queued)
        except (TooManyRequests, Unavailable) as error:
            raise EngineBusy("The re-ranking model is not there now.", retry_after=_AGAIN) from error

    async def _ask_worker(self, queue: str, body: dict[str, object], queued: QueuedRequest) -> Answer:
        model = str(body["model"])

        async def is_served() -> bool:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._serves, queue, model)

        request = msgspec.structs.replace(
            queued, id=new_id("req_"), url=searches.RERANK_URL, body=msgspec.json.encode(body)
        )
        end = await last_entry(self._client.submit(searches.rerank_queue(queue), request, is_served))
        if end.status in (408, 429, 503):
            raise EngineBusy("The re-ranking model is not there now.", retry_after=end.retry_after or _AGAIN)
        return Answer(end.status, end.body, Usage(*end.usage))

    def _route_of_model(self, model: str, queued: QueuedRequest) -> Route | Answer:
        """Return which workers have a re-ranking model, or the refusal. Raises EngineBusy."""
        config = self._context.config
        with self._context.db.read() as session:
            try:
                registry = self._context.models.now()
                work = Work(queued.tenant, queued.key_id or None, model, RERANK)
                return access.resolve(session, config, registry, work)
            except routing.NotServed as refused:
                return refusal(400, f"Invalid '{_PARAM}': {refused}", param=_PARAM, code=refused.code)
            except (routing.NotYet, ModelsFileError) as error:
                raise EngineBusy("The re-ranking model is not there yet.", retry_after=_AGAIN) from error

    def _serves(self, queue: str, model: str) -> bool:
        try:
            name = self._context.models.now().aliases.get(model, model)
        except ModelsFileError as error:
            raise EngineBusy("The re-ranking model is not there yet.", retry_after=_AGAIN) from error
        with self._context.db.read() as session:
            return workers.serves(session, queue, name)


def _rescore(hit: FoundChunk, score: float) -> FoundChunk:
    scores = msgspec.structs.replace(hit.scores, reranked=round(score, 6))
    return msgspec.structs.replace(hit, score=score, scores=scores)


def _clamp(score: float) -> float:
    return min(1.0, max(0.0, score))


def _logistic(score: float) -> float:
    """Return the logistic function, computed by the hyperbolic tangent, which never overflows."""
    return (1.0 + math.tanh(score / 2.0)) / 2.0


def _body(model: str, query: str, hits: Sequence[FoundChunk]) -> dict[str, object]:
    texts = [hit.text for hit in hits]
    return {"model": model, "query": query, "documents": texts, "return_documents": False}


def _refusal(ranker: str, answer: Answer) -> Answer:
    """Turn a refusal of the model into one of the request's ranker."""
    if answer.status >= 500:
        return answer
    error = msgspec.json.decode(answer.body).get("error") or {}
    message = f"The model '{ranker[:64]}' did not re-rank: {error.get('message')}"
    return refusal(400, message, param=_PARAM, code=error.get("code"))
