"""The indexes of a vector store, and what a comparison of two finds. All of it is ours."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from api.http.fields import when
from api.retrieval.schemas import FileCounts, show_counts
from jobs.retrieval import indexes
from jobs.retrieval.tables import VectorStore

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
