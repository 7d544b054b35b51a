"""Indexes of a vector store: build, sync, compare, switch to and delete indexes besides the one in use.

OpenAI has no indexes. Searches and all other routes of OpenAI use only the index in use. A comparison sends the same
queries to both indexes, and reports the similarity, quality and speed of their answers.
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
from api.http.fields import unix_seconds
from api.http.idempotency import Idempotent
from api.http.paging import After, Before, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import check_not_full, count_if_due
from api.inference.interactive import plain_response
from api.retrieval.queries import counts_of, get_store, stop_jobs
from api.retrieval.routes import resolve_model
from api.retrieval.schemas import ChunkingStrategy, FileCounts, VectorStoreFileObject, dump_chunking, show_counts
from api.retrieval.search import answer_of, search_of
from api.retrieval.store_files import POLL_AFTER, POLL_MS, Listed
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest, NotFound
from jobs.retrieval import indexes, metrics, reindexing, searches
from jobs.retrieval.tables import VectorStore, VectorStoreFile

Status = Literal["building", "ready", "failed", "cancelled", "active", "previous"]


class IndexObject(BaseModel):
    """An index. `missing` counts files that the index in use has or is adding, and that this one lacks."""

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
    """Quality relative to the relevant files; null if none were given."""

    recall: float | None = None
    ndcg: float | None = None
    mrr: float | None = None


class Side(Marks):
    """The files that one index finds for a query, each by its best chunk."""

    file_ids: list[str]
    latency_ms: float


class Compared(BaseModel):
    """The results for one query.

    `overlap` is the share of common files, `rank_correlation` Spearman's of them, or null.
    """

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
    """Return an index. `counts` and `lacks` are as in `indexes.status`, `used` is in bytes."""
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
        replaced_at=unix_seconds(index.replaced_at),
    )


router: APIRouter = resource("Vector store indexes", area="vector_stores")


class CreateIndex(Body):
    """The differences from the index in use. Without `chunking_strategy` each file is cut as in that index."""

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
    """Build an index of all files of a store. Searches go on to read the index in use."""

    def make(session: Session) -> IndexObject:
        check_not_full(session, call)
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        index = _build(session, call, store, body, once.key)
        call.record(session, "vector_store.index.create", index.id, {"store": store.id})
        return show_indexes(session, store, [index])[0]

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
    """List a store's indexes, the one in use included."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        cursor: dict[str, Any] = {"after": after, "before": before, "limit": limit, "order": order}
        deletions = deletion_details(call, "vector_store.index.delete", store.id)
        rows, more = find(session, indexes.of(store), VectorStore, deletions=deletions, **cursor)
        objects = {entry.id: entry for entry in show_indexes(session, store, rows)}
    return page(rows, more, lambda row: objects[row.id])


@router.get("/vector_stores/{vector_store_id}/indexes/{index_id}")
def retrieve_index(call: Call, response: Response, vector_store_id: str, index_id: str) -> IndexObject:
    """Return one index with the progress of its files."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        index = show_indexes(session, store, [get_index(session, store, index_id)])[0]
    if index.file_counts.in_progress:
        response.headers[POLL_AFTER] = str(POLL_MS)
    return index


@router.get("/vector_stores/{vector_store_id}/indexes/{index_id}/files")
def list_index_files(call: Call, vector_store_id: str, index_id: str, listing: Listed) -> Page[VectorStoreFileObject]:
    """List the store's files as they are in one of its indexes, with errors."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        return listing.page(call, session, store, index_id=get_index(session, store, index_id).id)


@router.delete("/vector_stores/{vector_store_id}/indexes/{index_id}")
def delete_index(call: Call, vector_store_id: str, index_id: str) -> IndexDeleted:
    """Delete an index that is not in use, and its vectors."""
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id)
        if get_index(session, store, index_id).id != store.current_id:
            stop_jobs(session, call, [index_id])  # jobs before stores: publishing locks them in this order
        store = get_store(session, call, vector_store_id, lock=True)
        index = get_index(session, store, index_id)
        reindexing.remove(session, store, index)
        call.record(session, "vector_store.index.delete", index_id, {"store": store.id, **cursor_details(index)})
    return IndexDeleted(id=index_id)


@router.post("/vector_stores/{vector_store_id}/indexes/{index_id}/sync", response_model=IndexObject)
def sync_index(call: Call, once: Idempotent, vector_store_id: str, index_id: str) -> Response:
    """Add to an index the files that it lacks: failed ones, and those of cancelled jobs."""

    def make(session: Session) -> IndexObject:
        check_not_full(session, call)
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        index = get_index(session, store, index_id)
        columns = {"idempotency_key": once.key, "request_id": call.request_id}
        job = reindexing.sync(session, store, index, actor=call.actor, **columns)
        call.record(session, "vector_store.index.sync", index.id, {"store": store.id, "job": job.id if job else None})
        return show_indexes(session, store, [index])[0]

    count_if_due(call)
    return once.run({}, make)


@router.post("/vector_stores/{vector_store_id}/indexes/{index_id}/switch")
def switch_index(call: Call, vector_store_id: str, index_id: str, body: SwitchIndex | None = None) -> IndexObject:
    """Let searches read this index from now on. The former one can be switched to again. Twice is not an error."""
    options = body or SwitchIndex()
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        index, before = get_index(session, store, index_id), store.current_id
        reindexing.switch(session, store, index, allow_missing=options.allow_missing)
        if store.current_id != before:
            details = {"store": store.id, "before": before, "allow_missing": options.allow_missing}
            call.record(session, "vector_store.index.switch", index.id, details)
        return show_indexes(session, store, [index])[0]


def get_index(session: Session, store: VectorStore, index_id: str) -> VectorStore:
    """Return an index of the store.

    Raises: NotFound.
    """
    index = session.scalar(
        indexes.of(store).where(VectorStore.id == index_id).execution_options(populate_existing=True)
    )
    if index is None:
        message = f"No index found with id '{clip(index_id)}' of vector store '{store.id}'."
        raise NotFound(message, param="index_id")
    return index


def show_indexes(session: Session, store: VectorStore, rows: Sequence[VectorStore]) -> list[IndexObject]:
    counts, used = counts_of(session, [row.id for row in rows])
    return [
        show_index(store, row, counts.get(row.id, {}), used.get(row.id, 0), indexes.lacking(session, store, row))
        for row in rows
    ]


def _build(session: Session, call: CallContext, store: VectorStore, body: CreateIndex, key: str | None) -> VectorStore:
    """Build an index. The model and the length of vectors default to those of the index in use."""
    current = indexes.current(session, store)
    dimensions = body.embedding_dimensions
    if body.embedding_model is None and dimensions is None and current.shortened:
        dimensions = current.dimensions
    return reindexing.build(
        session,
        store,
        model=resolve_model(session, call, body.embedding_model or current.model, body.embedding_dimensions),
        dimensions=dimensions,
        chunking=dump_chunking(body.chunking_strategy),
        actor=call.actor,
        idempotency_key=key,
        request_id=call.request_id,
    )


_MAX_QUERIES = 100
_CHUNKS = 5  # chunks per wanted file, because several may belong to one file

_Query = Annotated[str, Field(min_length=1, max_length=searches.MAX_QUERY, pattern=r"\S")]
_FileId = Annotated[str, Field(min_length=1, max_length=64)]


class JudgedQuery(Body):
    """A query, and optionally the files that are relevant."""

    query: _Query
    relevant: list[_FileId] = Field(default=[], min_length=1, max_length=1000)


class CompareIndexes(Body):
    queries: Annotated[list[_Query | JudgedQuery], Field(min_length=1, max_length=_MAX_QUERIES)]
    max_num_results: int = Field(default=10, ge=1, le=searches.MAX_RESULTS)

    @property
    def judged_queries(self) -> list[JudgedQuery]:
        return [JudgedQuery(query=query) if isinstance(query, str) else query for query in self.queries]


class _Refused(Exception):
    """A worker's refusal, to be passed on."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


@router.post("/vector_stores/{vector_store_id}/indexes/{index_id}/compare", response_model=Comparison)
async def compare_indexes(
    call: Call, request: Request, vector_store_id: str, index_id: str, body: CompareIndexes
) -> Any:
    """Send every query to both indexes, one after the other. Files are ranked by their best chunk."""
    queries = body.judged_queries
    active, candidate, missing = await run_in_threadpool(_find_both, call, vector_store_id, index_id, queries)
    k = body.max_num_results
    data = []
    try:
        for n, judged in enumerate(queries):
            sides = {}
            for index in (
                (active, candidate) if n % 2 == 0 else (candidate, active)
            ):  # alternate, so that neither profits from warm caches
                sides[index.id] = await _side(call, request, index, judged, k)
            data.append(_compare_query(judged.query, sides[active.id], sides[candidate.id]))
    except _Refused as refused:
        return refused.answer
    return Comparison(max_num_results=k, missing=missing, summary=_summary(data, active, candidate), data=data)


def _find_both(
    call: CallContext, store_id: str, index_id: str, queries: Sequence[JudgedQuery]
) -> tuple[VectorStore, VectorStore, int]:
    """Return the index in use, the other one, and how many files that lacks.

    Raises: NotFound, InvalidRequest.
    """
    with call.db.read() as session:
        store = get_store(session, call, store_id, alive=True)
        index = get_index(session, store, index_id)
        if index.id == store.current_id:
            message = f"The index '{index.id}' is the one in use: name another to compare it with."
            raise InvalidRequest(message, param="index_id", code="index_active")
        _check_judgements(session, store, queries)
        return indexes.current(session, store), index, indexes.count_missing(session, store, index)


def _check_judgements(session: Session, store: VectorStore, queries: Sequence[JudgedQuery]) -> None:
    """Check that the relevant files exist: a wrong id would look like a bad index."""
    for n, judged in enumerate(queries):
        files = VectorStoreFile.store_id == store.current_id, VectorStoreFile.id.in_(judged.relevant)
        known = set(session.scalars(select(VectorStoreFile.id).where(*files))) if judged.relevant else set()
        unknown = next((name for name in judged.relevant if name not in known), None)
        if unknown is not None:
            message = f"No file found with id '{clip(unknown)}' in vector store '{store.id}'."
            raise InvalidRequest(message, param=f"queries[{n}].relevant", code="invalid_value")


async def _side(call: CallContext, request: Request, index: VectorStore, judged: JudgedQuery, k: int) -> Side:
    """Return what one index finds.

    Raises: _Refused.
    """
    search = search_of(index, (judged.query,), k * _CHUNKS, None, None)
    began = time.perf_counter()
    first = await answer_of(call, request, search)
    took = time.perf_counter() - began
    if first.status >= 400:
        raise _Refused(plain_response(first))
    files = list(dict.fromkeys(chunk.file_id for chunk in searches.decode_results(first.body).chunks))[:k]
    return Side(file_ids=files, latency_ms=round(1000 * took, 2), **_marks(files, judged.relevant, k))


def _marks(files: list[str], relevant: list[str], k: int) -> dict[str, float]:
    if not relevant:
        return {}
    grades = dict.fromkeys(relevant, 1)
    return {
        "recall": round(metrics.recall(files, grades, k), 4),
        "ndcg": round(metrics.ndcg(files, grades, k), 4),
        "mrr": round(metrics.reciprocal_rank(files, grades, k), 4),
    }


def _compare_query(query: str, active: Side, candidate: Side) -> Compared:
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
        overlap=_mean(result.overlap for result in data) or 0.0,
        rank_correlation=_mean(result.rank_correlation for result in data),
        active=_means(active, [result.active for result in data]),
        candidate=_means(candidate, [result.candidate for result in data]),
    )


def _means(index: VectorStore, sides: Sequence[Side]) -> Mean:
    marks = {name: _mean(getattr(side, name) for side in sides) for name in Marks.model_fields}
    latency = round(statistics.median(side.latency_ms for side in sides), 2)
    return Mean(index_id=index.id, latency_ms=latency, **marks)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 4) if known else None
