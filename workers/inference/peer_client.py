"""Send requests to other workers, for a request of this worker: searches, vectors, and answers of another model.

They are sent as interactive clients send theirs. Searches and vectors have a queue of their own with its own limits, so
that they are not behind requests that may be waiting for them. Answers of another model have two further queues: for
clients, and for lines of batches, which must not pass for interactive clients.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Final

import msgspec
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import logs
from jobs.clock import now
from jobs.errors import DatabaseBusy, TooManyRequests, Unavailable, WorkerLost
from jobs.fleet import access, routing
from jobs.fleet.access import Work
from jobs.fleet.models_file import ModelsFileError
from jobs.fleet.routing import Route
from jobs.ids import new_id
from jobs.inference.client import InferenceClient
from jobs.inference.interactive import LINE_PRIORITY, PRIORITY, AnswerEntry, QueuedRequest, routed_queue
from jobs.requests.endpoints import EMBEDDINGS
from jobs.retrieval import indexes, searches
from jobs.retrieval.attachments import is_over
from jobs.retrieval.searches import FoundChunk, Search
from jobs.retrieval.tables import VectorStore
from jobs.security import project_rules
from workers.engines.port import Answer, Emit, EngineBusy, EngineFault, Request, Usage, refusal
from workers.runtime.context import Context

_SECONDS: Final = 60.0
_TRIES: Final = 3
RETRY_SECONDS: Final = 2.0
BROKEN_FILE: Final = "The models file cannot be read now."
_DIED: Final = "engine_died"
_LOST: Final = refusal(503, "The worker that was asked was lost while it answered. Ask again.", code="worker_lost")


class PeerClient:
    """Search vector stores and ask models through the queues of their workers, this one among them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._client = InferenceClient(context.config, context.timings)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="peers")

    async def close(self) -> None:
        with suppress(RedisError, OSError):
            await self._client.close()

    async def search(self, request: Request, search: Search) -> Sequence[FoundChunk] | Answer:
        """Return the hits of a search, or a refusal.

        Raises EngineBusy where no worker can search now, EngineFault where the search broke.
        """
        try:
            return await self._search(request, search)
        except (TooManyRequests, Unavailable) as error:
            raise EngineBusy(error.message, retry_after=RETRY_SECONDS) from error

    async def find_route(self, request: Request, model: str, endpoint: str, param: str) -> Route | Answer:
        """Return which workers have a model for the request's project, or a refusal. Raises EngineBusy."""

        def find() -> Route | Answer:
            with self._context.db.read() as session:
                return self._route(session, request, model, endpoint, param)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, find)
        except DatabaseBusy as error:
            raise EngineBusy(error.message, retry_after=RETRY_SECONDS) from error

    async def forward(self, queue: str, request: Request, emit: Emit | None = None) -> Answer:
        """Have a worker of `queue` answer; hand the chunks of a stream to `emit`. Raises EngineBusy, EngineFault."""
        model = str(request.body.get("model"))
        queued = QueuedRequest(
            id=new_id("req_"),
            url=request.url,
            body=msgspec.json.encode(request.body),
            tenant=request.tenant,
            deadline=now() + self._context.config.interactive_seconds,
            stream=emit is not None,
            priority=PRIORITY if request.priority <= PRIORITY else LINE_PRIORITY,
            job_id=request.job_id,
            request_id=logs.request_id(),
            key_id=request.key_id,
        )
        request_queue = (
            searches.search_queue(queue) if request.url == EMBEDDINGS else routed_queue(queue, queued.priority)
        )
        try:
            end = await self._exchange(request_queue, queue, model, queued, emit)
        except (TooManyRequests, Unavailable) as error:
            raise EngineBusy(error.message, retry_after=RETRY_SECONDS) from error
        _check_alive(model, end)
        if end.status in (429, 503):
            raise EngineBusy(
                f"The workers of `{model}` take nothing now.", retry_after=end.retry_after or RETRY_SECONDS
            )
        answer = Answer(end.status, end.body, Usage(*end.usage))
        if end.status == 408 or end.status >= 500:
            raise EngineFault(f"The workers of `{model}` gave no answer.", answer)
        return answer

    async def _search(self, request: Request, search: Search) -> Sequence[FoundChunk] | Answer:
        located = await self._locate(request, search)
        for _ in range(_TRIES):
            if isinstance(located, Answer):
                return located
            queue, index = located
            result = await self._search_once(request, search, queue, index)
            if not isinstance(result, Answer) or result.status != HTTPStatus.NOT_FOUND:
                return result
            located = await self._locate(request, search)
            if not isinstance(located, Answer) and located[1].id == index.id:
                return result  # else another index came into use, and the former one was removed
        return result

    async def _search_once(
        self, request: Request, search: Search, queue: str, index: VectorStore
    ) -> Sequence[FoundChunk] | Answer:
        queued = QueuedRequest(
            id=new_id("req_"),
            url=searches.URL,
            body=searches.encode(msgspec.structs.replace(search, model=index.model, store_id=index.id)),
            tenant=request.tenant,
            deadline=now() + _SECONDS,
            request_id=logs.request_id(),
            key_id=request.key_id,
        )
        end = await self._exchange(searches.search_queue(queue), queue, index.model, queued)
        _check_alive(index.model, end)
        if end.status in (408, 429, 503):
            raise EngineBusy("The search cannot be made now.", retry_after=end.retry_after or RETRY_SECONDS)
        if end.status >= 500:  # perhaps at each try
            raise EngineFault("The search broke.", Answer(end.status, end.body))
        return searches.decode_results(end.body).chunks if end.status == 200 else Answer(end.status, end.body)

    async def _exchange(
        self, request_queue: str, queue: str, model: str, queued: QueuedRequest, emit: Emit | None = None
    ) -> AnswerEntry:
        """Return the entry that ends the answer.

        Raises EngineFault where a worker was lost while it answered: the request may be the cause.
        """

        async def is_served() -> bool:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._is_served, queue, model)

        taken = False
        try:
            async with aclosing(self._client.submit(request_queue, queued, is_served)) as entries:
                async for entry in entries:
                    taken = True
                    if entry.kind == "end":
                        return entry
                    if entry.kind == "chunk" and emit is not None:
                        await emit(entry.body)
        except WorkerLost as error:
            if not taken:
                raise
            raise EngineFault(
                f"The worker of `{model}` was lost while it answered.", _LOST, unreachable=True
            ) from error
        raise WorkerLost

    async def _locate(self, request: Request, search: Search) -> tuple[str, VectorStore] | Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._find_index, request, search)

    def _find_index(self, request: Request, search: Search) -> tuple[str, VectorStore] | Answer:
        """Return the queue of a store's model, and the store's current index, or a refusal."""
        context = self._context
        with context.db.read() as session:
            if not project_rules.allows_tool(session, request.tenant, project_rules.FILE_SEARCH):
                return refusal(403, "File search is disabled for this project.", param="tools", code="tool_not_allowed")
            of_project = VectorStore.id == search.store_id, VectorStore.project_id == request.tenant
            store = session.scalar(select(VectorStore).where(*of_project, VectorStore.parent_id.is_(None)))
            if store is None or is_over(store):
                message = f"Vector store with id '{search.store_id[:64]}' not found."
                return refusal(404, message, param="tools", code="vector_store_not_found")
            index = indexes.current(session, store)
            route = self._route(session, request, index.model, EMBEDDINGS, "tools")
        return route if isinstance(route, Answer) else (route.queue, index)

    def _route(self, session: Session, request: Request, model: str, endpoint: str, param: str) -> Route | Answer:
        config = self._context.config
        try:
            registry = self._context.models.now()
            work = Work(request.tenant, request.key_id or None, model, endpoint)
            route = access.resolve(session, config, registry, work)
        except routing.NotServed as refused:
            return refusal(400, str(refused), param=param, code=refused.code)
        except routing.NotYet as error:
            raise EngineBusy(f"The model `{model}` is not there yet.", retry_after=RETRY_SECONDS) from error
        except ModelsFileError as error:
            raise EngineBusy(BROKEN_FILE, retry_after=RETRY_SECONDS) from error
        if routing.is_paused(session, route.queue, route.model, request.tenant):
            raise EngineBusy(f"The operator has paused the model `{model}`.", retry_after=RETRY_SECONDS)
        return route

    def _is_served(self, queue: str, model: str) -> bool:
        try:
            registry = self._context.models.now()
        except ModelsFileError as error:
            raise EngineBusy(BROKEN_FILE, retry_after=RETRY_SECONDS) from error
        with self._context.db.read() as session:
            return routing.is_served(session, registry, queue, model)


def _check_alive(model: str, end: AnswerEntry) -> None:
    """Raise EngineFault where the other engine ended with the request in flight, as this worker's own would."""
    if end.status == 503 and _code_of(end.body) == _DIED:
        answer = Answer(end.status, end.body)
        raise EngineFault(f"The engine of `{model}` ended while it answered.", answer, unreachable=True)


def _code_of(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Refused).error.code
    except msgspec.MsgspecError:
        return None


class _Error(msgspec.Struct):
    code: str | None = None


class _Refused(msgspec.Struct):
    error: _Error
