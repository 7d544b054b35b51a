"""A set of queries, asked of the index in use and of another: how alike, how good and how fast their answers are."""

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.error_messages import clip
from api.http.bodies import Body
from api.http.resource import resource
from api.inference.asking import whole
from api.retrieval import ranking
from api.retrieval.index_schemas import Compared, Comparison, Marks, Mean, Side, Summary
from api.retrieval.indexes import get_index
from api.retrieval.queries import get_store
from api.retrieval.search import LONGEST_QUERY, answer_of, wanted
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest
from jobs.retrieval import indexes, searches
from jobs.retrieval.tables import VectorStore, VectorStoreFile

router: APIRouter = resource("Vector store indexes")

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
        raise _Refused(whole(first))
    files = list(dict.fromkeys(chunk.file_id for chunk in searches.decode_results(first.body).found))[:k]
    return Side(file_ids=files, latency_ms=round(1000 * took, 2), **_marks(files, one.relevant, k))


def _marks(files: list[str], relevant: list[str], k: int) -> dict[str, float]:
    if not relevant:
        return {}
    return {
        "recall": round(ranking.recall(files, relevant), 4),
        "ndcg": round(ranking.ndcg(files, relevant, k), 4),
        "mrr": round(ranking.reciprocal_rank(files, relevant), 4),
    }


def _compared(query: str, active: Side, candidate: Side) -> Compared:
    correlation = ranking.rank_correlation(active.file_ids, candidate.file_ids)
    return Compared(
        query=query,
        overlap=round(ranking.overlap(active.file_ids, candidate.file_ids), 4),
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
