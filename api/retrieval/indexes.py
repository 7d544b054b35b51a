"""Indexes of a vector store: another beside the one in use, built, filled up, switched to, removed. Ours.

Searches, and everything else that OpenAI has, know the index in use alone.
"""

from collections.abc import Sequence
from typing import Any, Self

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.error_messages import clip
from api.http.bodies import Body
from api.http.idempotency import Idempotent
from api.http.paging import After, Before, Limit20, Order, Page, deleted, find, page, place_of
from api.http.resource import resource
from api.http.space import check_not_full, count_if_due
from api.retrieval.chunking import ChunkingStrategy, kept
from api.retrieval.index_schemas import IndexDeleted, IndexObject, show_index
from api.retrieval.queries import counts_of, get_store, stop_jobs
from api.retrieval.routes import checked_model
from api.retrieval.schemas import VectorStoreFileObject
from api.retrieval.store_files import POLL_AFTER, POLL_MS, Listed
from jobs.errors import NotFound
from jobs.retrieval import indexes, reindexing
from jobs.retrieval.tables import VectorStore

router: APIRouter = resource("Vector store indexes")


class CreateIndex(Body):
    """What is to be different. Without `chunking_strategy` every file is cut as it was."""

    embedding_model: str | None = Field(default=None, min_length=1, max_length=255)
    embedding_dimensions: int | None = Field(default=None, ge=1, le=16_384)
    chunking_strategy: ChunkingStrategy | None = None

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if not self.model_fields_set or all(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("One of 'embedding_model', 'embedding_dimensions' and 'chunking_strategy' is required.")
        return self


class SwitchIndex(Body):
    allow_missing: bool = False


@router.post("/vector_stores/{vector_store_id}/indexes", response_model=IndexObject)
def create_index(call: Call, once: Idempotent, vector_store_id: str, body: CreateIndex) -> Response:
    """An index of all files of a store, built beside the one in use, which searches go on to read."""

    def make(session: Session) -> IndexObject:
        check_not_full(session, call)
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        index = _build(session, call, store, body, once.key)
        call.record(session, "vector_store.index.create", index.id, {"store": store.id})
        return shown(session, store, [index])[0]

    count_if_due(call)
    return once.run(body.fields(), make)


@router.get("/vector_stores/{vector_store_id}/indexes")
def list_indexes(
    call: Call,
    vector_store_id: str,
    after: After = None,
    before: Before = None,
    limit: Limit20 = 20,
    order: Order = "desc",
) -> Page[IndexObject]:
    """A store's indexes, the one in use among them."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        place: dict[str, Any] = {"after": after, "before": before, "limit": limit, "order": order}
        gone = deleted(call, "vector_store.index.delete", store.id)
        rows, more = find(session, indexes.of(store), VectorStore, gone=gone, **place)
        objects = {one.id: one for one in shown(session, store, rows)}
    return page(rows, more, lambda row: objects[row.id])


@router.get("/vector_stores/{vector_store_id}/indexes/{index_id}")
def retrieve_index(call: Call, response: Response, vector_store_id: str, index_id: str) -> IndexObject:
    """One index, with how far its files are."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        index = shown(session, store, [get_index(session, store, index_id)])[0]
    if index.file_counts.in_progress:
        response.headers[POLL_AFTER] = str(POLL_MS)
    return index


@router.get("/vector_stores/{vector_store_id}/indexes/{index_id}/files")
def list_index_files(call: Call, vector_store_id: str, index_id: str, listing: Listed) -> Page[VectorStoreFileObject]:
    """The store's files as they are in one of its indexes: which of them failed, and why."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        return listing.page(call, session, store, index_id=get_index(session, store, index_id).id)


@router.delete("/vector_stores/{vector_store_id}/indexes/{index_id}")
def delete_index(call: Call, vector_store_id: str, index_id: str) -> IndexDeleted:
    """Remove an index that is not in use, with all that was embedded for it."""
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id)
        if get_index(session, store, index_id).id != store.current_id:
            stop_jobs(session, call, [index_id])  # jobs before stores: whoever publishes locks them so
        store = get_store(session, call, vector_store_id, lock=True)
        index = get_index(session, store, index_id)
        reindexing.remove(session, store, index)
        call.record(session, "vector_store.index.delete", index_id, {"store": store.id, **place_of(index)})
    return IndexDeleted(id=index_id)


@router.post("/vector_stores/{vector_store_id}/indexes/{index_id}/sync", response_model=IndexObject)
def sync_index(call: Call, once: Idempotent, vector_store_id: str, index_id: str) -> Response:
    """Bring into an index what it lacks: files that failed in it, or that a job was cancelled before."""

    def make(session: Session) -> IndexObject:
        check_not_full(session, call)
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        index = get_index(session, store, index_id)
        facts = {"idempotency_key": once.key, "request_id": call.request_id}
        job = reindexing.sync(session, store, index, actor=call.actor, **facts)
        call.record(session, "vector_store.index.sync", index.id, {"store": store.id, "job": job.id if job else None})
        return shown(session, store, [index])[0]

    count_if_due(call)
    return once.run({}, make)


@router.post("/vector_stores/{vector_store_id}/indexes/{index_id}/switch")
def switch_index(call: Call, vector_store_id: str, index_id: str, body: SwitchIndex | None = None) -> IndexObject:
    """Searches read this index from now on. Switched to again, the one before is back. Twice is no error."""
    wanted = body or SwitchIndex()
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        index, before = get_index(session, store, index_id), store.current_id
        reindexing.switch(session, store, index, allow_missing=wanted.allow_missing)
        if store.current_id != before:
            details = {"store": store.id, "before": before, "allow_missing": wanted.allow_missing}
            call.record(session, "vector_store.index.switch", index.id, details)
        return shown(session, store, [index])[0]


def get_index(session: Session, store: VectorStore, index_id: str) -> VectorStore:
    """Raises NotFound."""
    index = session.scalar(
        indexes.of(store).where(VectorStore.id == index_id).execution_options(populate_existing=True)
    )
    if index is None:
        message = f"No index found with id '{clip(index_id)}' of vector store '{store.id}'."
        raise NotFound(message, param="index_id")
    return index


def shown(session: Session, store: VectorStore, rows: Sequence[VectorStore]) -> list[IndexObject]:
    counts, used = counts_of(session, [row.id for row in rows])
    return [
        show_index(store, row, counts.get(row.id, {}), used.get(row.id, 0), indexes.lacking(session, store, row))
        for row in rows
    ]


def _build(session: Session, call: CallContext, store: VectorStore, body: CreateIndex, key: str | None) -> VectorStore:
    """Of the model in use where none is named; and as long vectors, where neither is."""
    current = indexes.current(session, store)
    dimensions = body.embedding_dimensions
    if body.embedding_model is None and dimensions is None and current.shortened:
        dimensions = current.dimensions
    return reindexing.build(
        session,
        store,
        model=checked_model(session, call, body.embedding_model or current.model, body.embedding_dimensions),
        dimensions=dimensions,
        chunking=kept(body.chunking_strategy),
        actor=call.actor,
        idempotency_key=key,
        request_id=call.request_id,
    )
