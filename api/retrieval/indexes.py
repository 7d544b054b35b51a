"""Indexes of a vector store: another beside the one in use, built, filled up, compared, switched to, removed.

OpenAI has no indexes. Searches, and everything else that OpenAI has, know the index in use alone. A comparison asks
both indexes the same queries, and reports how alike, how good and how fast their answers are.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import when
from api.http.idempotency import Idempotent
from api.http.paging import After, Before, Limit20, Order, Page, cursor_details, deleted, find, page
from api.http.space import check_not_full, count_if_due
from api.inference.interactive import whole_response
from api.retrieval.queries import counts_of, get_store, stop_jobs
from api.retrieval.routes import checked_model
from api.retrieval.schemas import ChunkingStrategy, FileCounts, VectorStoreFileObject, show_counts, stored_chunking
from api.retrieval.search import LONGEST_QUERY, answer_of, wanted
from api.retrieval.store_files import POLL_AFTER, POLL_MS, Listed
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest, NotFound
from jobs.retrieval import indexes, metrics, reindexing, searches
from jobs.retrieval.tables import VectorStore, VectorStoreFile

Status = Literal["building", "ready", "failed", "cancelled", "active", "previous"]


class IndexObject(BaseModel):
    """`missing` are files that the index in use has, or is about to have, and this one has not."""

    id: str
    object: Literal["vector_store.index"] = "vector_store.index"
    created_at: int
    vector_store_id: str
    status: Status
    embedding_model: str
    embedding_dimensions: int | None
    chunking_strategy: dict[str, Any]
    file_counts: FileCounts
    missing: int
    usage_bytes: int
    job_id: str | None = Field(
        description="The job that has filled it last: followed, cancelled, retried as any other."
    )
    replaced_at: int | None


class IndexDeleted(BaseModel):
    id: str
    object: Literal["vector_store.index.deleted"] = "vector_store.index.deleted"
    deleted: bool = True


class Marks(BaseModel):
    """Against the files that should be found. Null where nobody has said which."""

    recall: float | None = None
    ndcg: float | None = None
    mrr: float | None = None


class Side(Marks):
    """What one index finds for a query: files, each by its best chunk."""

    file_ids: list[str]
    latency_ms: float


class Compared(BaseModel):
    """`overlap` is the share of files that both find, `rank_correlation` Spearman's of those: null of less than two."""

    query: str
    overlap: float
    rank_correlation: float | None
    active: Side
    candidate: Side


class Mean(Marks):
    """Means over the queries that have the number; the latency is the median."""

    index_id: str
    latency_ms: float


class Summary(BaseModel):
    overlap: float
    rank_correlation: float | None
    active: Mean
    candidate: Mean


class Comparison(BaseModel):
    object: Literal["vector_store.index.comparison"] = "vector_store.index.comparison"
    max_num_results: int
    missing: int
    summary: Summary
    data: list[Compared]


def show_index(
    store: VectorStore, index: VectorStore, counts: dict[str, int], used: int, lacks: dict[str | None, int]
) -> IndexObject:
    """`counts` and `lacks` as `indexes.status` takes them, `used` in bytes."""
    return IndexObject(
        id=index.id,
        created_at=int(index.created_at),
        vector_store_id=store.id,
        status=indexes.status(store, index, counts, lacks),
        embedding_model=index.model,
        embedding_dimensions=index.dimensions or None,
        chunking_strategy=index.chunking,
        file_counts=show_counts(counts),
        missing=sum(lacks.values()),
        usage_bytes=used,
        job_id=index.job_id,
        replaced_at=when(index.replaced_at),
    )


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
        cursor: dict[str, Any] = {"after": after, "before": before, "limit": limit, "order": order}
        deletions = deleted(call, "vector_store.index.delete", store.id)
        rows, more = find(session, indexes.of(store), VectorStore, deletions=deletions, **cursor)
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
        call.record(session, "vector_store.index.delete", index_id, {"store": store.id, **cursor_details(index)})
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
        chunking=stored_chunking(body.chunking_strategy),
        actor=call.actor,
        idempotency_key=key,
        request_id=call.request_id,
    )


_MOST_QUERIES = 100
_CHUNKS = 5  # asked for each file that is wanted: several may be of one file

_Query = Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY, pattern=r"\S")]
_FileId = Annotated[str, Field(min_length=1, max_length=64)]


class JudgedQuery(Body):
    """A query, and the files that should be found, if anybody knows."""

    query: _Query
    relevant: list[_FileId] = Field(default=[], min_length=1, max_length=1000)


class CompareIndexes(Body):
    queries: Annotated[list[_Query | JudgedQuery], Field(min_length=1, max_length=_MOST_QUERIES)]
    max_num_results: int = Field(default=10, ge=1, le=50)

    @property
    def judged(self) -> list[JudgedQuery]:
        return [JudgedQuery(query=one) if isinstance(one, str) else one for one in self.queries]


class _Refused(Exception):
    """A worker's refusal, as it is to be passed on."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


@router.post("/vector_stores/{vector_store_id}/indexes/{index_id}/compare", response_model=Comparison)
async def compare_indexes(
    call: Call, request: Request, vector_store_id: str, index_id: str, body: CompareIndexes
) -> Any:
    """Ask both indexes every query, one after the other. Ranked are files, each by its best chunk."""
    queries = body.judged
    active, candidate, missing = await run_in_threadpool(_both, call, vector_store_id, index_id, queries)
    k = body.max_num_results
    data = []
    try:
        for n, one in enumerate(queries):
            found = {}
            for index in (active, candidate) if n % 2 == 0 else (candidate, active):  # neither is always the second
                found[index.id] = await _side(call, request, index, one, k)
            data.append(_compared(one.query, found[active.id], found[candidate.id]))
    except _Refused as refused:
        return refused.answer
    return Comparison(max_num_results=k, missing=missing, summary=_summary(data, active, candidate), data=data)


def _both(
    call: CallContext, store_id: str, index_id: str, queries: Sequence[JudgedQuery]
) -> tuple[VectorStore, VectorStore, int]:
    """The index in use, the other, and how many files that lacks. Raises NotFound, InvalidRequest."""
    with call.db.read() as session:
        store = get_store(session, call, store_id, alive=True)
        index = get_index(session, store, index_id)
        if index.id == store.current_id:
            message = f"The index '{index.id}' is the one in use: name another to compare it with."
            raise InvalidRequest(message, param="index_id", code="index_active")
        _check_judgements(session, store, queries)
        return indexes.current(session, store), index, indexes.count_missing(session, store, index)


def _check_judgements(session: Session, store: VectorStore, queries: Sequence[JudgedQuery]) -> None:
    """What should be found has to be there: a wrong id would only look like a bad index."""
    for n, one in enumerate(queries):
        files = VectorStoreFile.store_id == store.current_id, VectorStoreFile.id.in_(one.relevant)
        known = set(session.scalars(select(VectorStoreFile.id).where(*files))) if one.relevant else set()
        unknown = next((name for name in one.relevant if name not in known), None)
        if unknown is not None:
            message = f"No file found with id '{clip(unknown)}' in vector store '{store.id}'."
            raise InvalidRequest(message, param=f"queries[{n}].relevant", code="invalid_value")


async def _side(call: CallContext, request: Request, index: VectorStore, one: JudgedQuery, k: int) -> Side:
    """Raises _Refused."""
    search = wanted(index, (one.query,), k * _CHUNKS, None, None)
    began = time.perf_counter()
    first = await answer_of(call, request, search)
    took = time.perf_counter() - began
    if first.status >= 400:
        raise _Refused(whole_response(first))
    files = list(dict.fromkeys(chunk.file_id for chunk in searches.decode_results(first.body).found))[:k]
    return Side(file_ids=files, latency_ms=round(1000 * took, 2), **_marks(files, one.relevant, k))


def _marks(files: list[str], relevant: list[str], k: int) -> dict[str, float]:
    if not relevant:
        return {}
    grades = dict.fromkeys(relevant, 1)
    return {
        "recall": round(metrics.recall(files, grades, k), 4),
        "ndcg": round(metrics.ndcg(files, grades, k), 4),
        "mrr": round(metrics.reciprocal_rank(files, grades, k), 4),
    }


def _compared(query: str, active: Side, candidate: Side) -> Compared:
    correlation = metrics.rank_correlation(active.file_ids, candidate.file_ids)
    return Compared(
        query=query,
        overlap=round(metrics.overlap(active.file_ids, candidate.file_ids), 4),
        rank_correlation=None if correlation is None else round(correlation, 4),
        active=active,
        candidate=candidate,
    )


def _summary(data: Sequence[Compared], active: VectorStore, candidate: VectorStore) -> Summary:
    return Summary(
        overlap=_mean(one.overlap for one in data) or 0.0,
        rank_correlation=_mean(one.rank_correlation for one in data),
        active=_means(active, [one.active for one in data]),
        candidate=_means(candidate, [one.candidate for one in data]),
    )


def _means(index: VectorStore, sides: Sequence[Side]) -> Mean:
    marks = {name: _mean(getattr(side, name) for side in sides) for name in Marks.model_fields}
    latency = round(statistics.median(side.latency_ms for side in sides), 2)
    return Mean(index_id=index.id, latency_ms=latency, **marks)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 4) if known else None
