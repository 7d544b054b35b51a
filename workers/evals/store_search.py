"""Search a vector store for the items of a run, as `POST /v1/vector_stores/{id}/search` does.

    request ─▶ the index in use, or that of the run ─▶ this worker, which has its model ─▶ chunks, as the line's answer

A store that was removed or has expired meanwhile, or belongs to another project, is refused with 404.
"""

import asyncio
from typing import Final

from sqlalchemy import select

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.evals.runs import Retrieval
from jobs.inference.interactive import QueuedRequest
from jobs.retrieval import attachments, indexes, searches
from jobs.retrieval.searches import MAX_QUERY, Search
from jobs.retrieval.tables import VectorStore
from workers.engines.port import Answer, EngineBusy, Request, refusal
from workers.retrieval.reranking import Reranking
from workers.retrieval.search import Searching
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost

_AGAIN: Final = 1.0


class StoreSearch:
    """The searches of one run in this process, whose engines serve `queue`."""

    def __init__(self, context: Context, host: EngineHost, queue: str, retrieval: Retrieval) -> None:
        self._context, self._host, self._retrieval = context, host, retrieval
        self._reranking = Reranking(context, host, queue)
        self._searching = Searching(context, host, self._reranking)

    def close(self) -> None:
        self._searching.close()
        self._host.call(self._reranking.close()).result()

    async def answer(self, request: Request) -> Answer:
        """Answer the request of a line, whose `input` is the query. Raises what engines raise."""
        query = str(request.body["input"])
        if not query.strip() or len(query) > MAX_QUERY:
            return refusal(400, f"A query has 1 to {MAX_QUERY} characters, not all of them spaces.", param="query")
        try:
            search = await asyncio.to_thread(self._search_of, request.tenant, query)
        except DatabaseBusy as error:
            raise EngineBusy(error.message, retry_after=_AGAIN) from error
        if search is None:
            store_id = self._retrieval.vector_store_id
            return refusal(404, f"No vector store found with id '{store_id}'.", param="vector_store_id")
        body, deadline = searches.encode(search), now() + self._context.config.interactive_seconds
        queued = QueuedRequest(request.request_id, searches.URL, body, request.tenant, deadline, key_id=request.key_id)
        return await self._searching.answer(queued, request.priority)

    def _search_of(self, project_id: str, query: str) -> Search | None:
        """Return the search of the index; None where the project has no such store, or the store no such index."""
        conditions = VectorStore.id == self._retrieval.vector_store_id, VectorStore.project_id == project_id
        with self._context.db.read() as session:
            store = session.scalar(select(VectorStore).where(*conditions, VectorStore.parent_id.is_(None)))
            if store is None or attachments.is_over(store):
                return None
            index_id = self._retrieval.index_id or store.current_id
            index = session.scalar(indexes.of(store).where(VectorStore.id == index_id))
        if index is None:
            return None
        return Search(model=index.model, store_id=index.id, queries=(query,), **self._retrieval.options)
