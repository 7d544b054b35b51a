"""A search that this worker needs for a request of its own: asked of a worker that has the store's embedding model, the
way clients who wait are answered.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Final

import msgspec
from sqlalchemy import select

from jobs import fleet, indexes, placement, searches
from jobs.attachments import is_over
from jobs.clock import now
from jobs.errors import DatabaseBusy, NoWorker, Overloaded, StreamsAway, WorkerLost
from jobs.ids import new_id
from jobs.interactive import Piece, Question
from jobs.models import VectorStore
from jobs.searches import Found, Search
from jobs.waiting import Lines
from workers.context import Context
from workers.engines.port import Answer, EngineBusy, Request, refusal

_SECONDS: Final = 60.0
_AGAIN: Final = 2.0


class Asking:
    """Searches by other workers, or by this one."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lines = Lines(context.config)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="asking")

    async def search(self, request: Request, search: Search) -> Sequence[Found] | Answer:
        """What a store has, or a refusal. Raises EngineBusy where nobody can say now."""
        try:
            return await self._search(request, search)
        except (DatabaseBusy, NoWorker, Overloaded, StreamsAway, WorkerLost) as error:
            raise EngineBusy(error.message, retry_after=_AGAIN) from error

    async def _search(self, request: Request, search: Search) -> Sequence[Found] | Answer:
        loop = asyncio.get_running_loop()
        placed = await loop.run_in_executor(self._threads, self._place, request, search)
        if isinstance(placed, Answer):
            return placed
        queue, index = placed
        question = Question(
            id=new_id("req_"),
            url=searches.URL,
            body=searches.encode(msgspec.structs.replace(search, model=index.model, store_id=index.id)),
            tenant=request.tenant,
            deadline=now() + _SECONDS,
        )
        end = await self._asked(queue, index.model, question)
        if end.status in (408, 429) or end.status >= 500:
            raise EngineBusy("The search cannot be made now.", retry_after=end.retry_after or _AGAIN)
        return searches.decode_results(end.body).found if end.status == 200 else Answer(end.status, end.body)

    async def _asked(self, queue: str, model: str, question: Question) -> Piece:
        async def served() -> bool:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._served, queue, model)

        async with aclosing(self._lines.ask(searches.line(queue), question, served)) as pieces:
            async for piece in pieces:
                if piece.kind == "end":
                    return piece
        raise WorkerLost

    def _place(self, request: Request, search: Search) -> tuple[str, VectorStore] | Answer:
        """The index in use of a store of the request's project, and the queue of its model."""
        context = self._context
        with context.db.read() as session:
            mine = VectorStore.id == search.store_id, VectorStore.project_id == request.tenant
            store = session.scalar(select(VectorStore).where(*mine, VectorStore.parent_id.is_(None)))
            if store is None or is_over(store):
                message = f"Vector store with id '{search.store_id[:64]}' not found."
                return refusal(404, message, param="tools", code="vector_store_not_found")
            index = indexes.current(session, store)
            try:
                queue = placement.queue_of(
                    session, context.config, index.model, endpoint="/v1/embeddings", project_id=request.tenant
                )
            except placement.NotServed as refused:
                return refusal(400, str(refused), param="tools", code=refused.code)
            except placement.NotYet as error:
                raise EngineBusy("The store's embedding model is not there yet.", retry_after=_AGAIN) from error
        return queue, index

    def _served(self, queue: str, model: str) -> bool:
        with self._context.db.read() as session:
            return fleet.serves(session, queue, model)
