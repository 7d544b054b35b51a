"""Vector stores, their files and chunking strategies in requests and answers."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from pydantic import BaseModel, Field, model_validator

from api.http.bodies import Body
from api.http.fields import Dependent, dependence, unix_seconds
from api.webhooks.queries import BatchWebhook
from jobs.ledger.progress import Totals
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.retrieval.attachments import Stage, is_over
from jobs.retrieval.documents import Document
from jobs.retrieval.searches import FoundChunk, SearchResults
from jobs.retrieval.tables import VectorStore, VectorStoreFile

#: OpenAI's `auto`.
AUTO: dict[str, Any] = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
#: Percentile of distances between sentences; chosen by measurement, see `workers/retrieval/ingestion/semantic.py`.
PERCENTILE: Final = 85.0


class Sizes(Body):
    """The size and the overlap of chunks, in tokens of the store's embedding model.

    A chunk is never longer than the input that the model takes, even where `max_chunk_size_tokens` is greater.
    """

    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("chunk_overlap_tokens is at most half of max_chunk_size_tokens.")
        return self


class Auto(Body):
    type: Literal["auto"]


class Static(Body):
    type: Literal["static"]
    static: Sizes


class Sentence(Body):
    """Chunks end where a sentence does, where one fits. Ours."""

    type: Literal["sentence"]
    sentence: Sizes


class Meaning(Body):
    """The rule by which chunks end where the subject changes.

    A chunk ends where the cosine distance between three sentences and the next three is above `threshold`, or above
    the `percentile` (by default 85) of all such distances in the document.
    """

    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    percentile: float | None = Field(default=None, ge=1, le=99.9)
    threshold: float | None = Field(default=None, gt=0, le=2)

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.percentile is not None and self.threshold is not None:
            raise ValueError("At most one of percentile and threshold.")
        return self


class Semantic(Body):
    """Chunks end where what the text is about changes. Ours. Each sentence is embedded too."""

    type: Literal["semantic"]
    semantic: Meaning


class Structure(Body):
    """Sections, code and tables are kept whole, where they fit. Ours."""

    type: Literal["structure"]
    structure: Sizes


Strategy = Auto | Static | Sentence | Structure | Semantic
ChunkingStrategy = Annotated[Strategy, Field(discriminator="type")]


def dump_chunking(strategy: Strategy | None) -> dict[str, Any] | None:
    """Return a chunking strategy as a row stores it; None if the request has none."""
    if strategy is None:
        return None
    if isinstance(strategy, Auto):
        return AUTO
    shown = strategy.model_dump(mode="json", exclude_none=True)
    if isinstance(strategy, Semantic) and strategy.semantic.threshold is None:
        shown["semantic"].setdefault("percentile", PERCENTILE)
    return shown


FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]
Value = str | bool | int | float

BATCH_STATUS: dict[str, FileStatus] = {
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
    JobState.CANCELLED: "cancelled",
}


_STOPPING = (JobState.QUEUED, JobState.CANCELLING, JobState.EXPIRING)


class FileCounts(BaseModel):
    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class ExpiresAfterActive(BaseModel):
    anchor: Literal["last_active_at"] = "last_active_at"
    days: int


class VectorStoreObject(BaseModel):
    """`embedding_model` and `embedding_dimensions` (null until something was embedded) are ours."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str | None
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: ExpiresAfterActive | None
    expires_at: int | None
    last_active_at: int | None
    metadata: dict[str, str] | None
    embedding_model: str
    embedding_dimensions: int | None


class VectorStoreDeleted(BaseModel):
    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: bool = True


class LastError(BaseModel):
    code: str
    message: str


class VectorStoreFileObject(BaseModel):
    """`filename` and `stage` are ours; `stage` says how far a file is, while it is in progress."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    usage_bytes: int
    status: FileStatus
    last_error: LastError | None
    chunking_strategy: dict[str, Any]
    attributes: dict[str, Value] | None
    filename: str
    stage: Stage | None = Field(default=None, exclude_if=lambda stage: stage is None)


class CreatedVectorStoreFile(VectorStoreFileObject):
    """A file with its own webhook, as the call that brings it in answers it."""

    webhook: BatchWebhook | None


class VectorStoreFileDeleted(BaseModel):
    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: bool = True


class FileBatchObject(Dependent):
    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: FileStatus
    file_counts: FileCounts


class CreatedFileBatch(FileBatchObject):
    """A batch of files with its own webhook, as its create answers it."""

    webhook: BatchWebhook | None


class Text(BaseModel):
    type: Literal["text"] = "text"
    text: str


class FileContentPage(BaseModel):
    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[Text]
    has_more: bool = False
    next_page: str | None = None


class ChunkFacts(BaseModel):
    """The position of a chunk in its file: the `n`-th chunk, `text[start:end]` of the content. Not OpenAI's.

    `language` is an ISO 639-1 code. `time` is the last change that the file itself names. `sha256` is of the text.
    """

    n: int
    start: int
    end: int
    tokens: int
    page: int | None = None
    section: list[str] | None = None
    title: str | None = None
    language: str | None = None
    time: str | None = None
    sha256: str | None = None


class ChunkScores(BaseModel):
    """The parts of a result's score; null from a ranking that has not found the chunk, or was not made. Not OpenAI's.

    `vectors` is the cosine with the query, `words` the BM25 score, `fused` the fusion of both, `reranked` the score of
    the re-ranking model.
    """

    vectors: float | None
    words: float | None
    fused: float | None
    reranked: float | None


class SearchResult(BaseModel):
    file_id: str
    filename: str
    score: float
    attributes: dict[str, Value] | None
    content: list[Text]
    chunk: ChunkFacts | None = None
    scores: ChunkScores | None = None


#: Fields of a search's answer that are not OpenAI's.
SearchField = Literal["chunk", "scores", "duplicates"]


class SearchPage(BaseModel):
    """OpenAI's fields, and those that `include` names; `duplicates` is how many were left out by `deduplicate`."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchResult]
    has_more: bool = False
    next_page: str | None = None
    duplicates: int | None = None


def show_store(
    store: VectorStore, index: VectorStore, counts: Mapping[str, int], usage_bytes: int
) -> VectorStoreObject:
    """Return a store. `index` is the one in use, `counts` are its files by status."""
    return VectorStoreObject(
        id=store.id,
        created_at=int(store.created_at),
        name=store.name,
        description=store.description,
        usage_bytes=usage_bytes,
        file_counts=show_counts(counts),
        status="expired" if is_over(store) else "in_progress" if counts.get("in_progress") else "completed",
        expires_after=None if store.expires_days is None else ExpiresAfterActive(days=store.expires_days),
        expires_at=unix_seconds(store.expires_at),
        last_active_at=int(store.active_at),
        metadata=store.metadata_ or {},
        embedding_model=index.model,
        embedding_dimensions=index.dimensions or None,
    )


_COUNTED = ("in_progress", "completed", "failed", "cancelled")


def show_counts(counts: Mapping[str, int]) -> FileCounts:
    return FileCounts(total=sum(counts.values()), **{name: counts.get(name, 0) for name in _COUNTED})


def show_store_file(store: VectorStore, row: VectorStoreFile, stage: Stage | None = None) -> VectorStoreFileObject:
    error = LastError(code=row.error_code, message=row.error_message or "") if row.error_code else None
    return VectorStoreFileObject(
        id=row.id,
        created_at=int(row.created_at),
        vector_store_id=store.id,
        usage_bytes=row.usage_bytes,
        status=row.status,
        last_error=error,
        chunking_strategy=row.chunking,
        attributes=row.attributes,
        filename=row.filename,
        stage=stage,
    )


def show_file_batch(job: Job, totals: Totals, after: Sequence[str] = ()) -> FileBatchObject:
    """Return a file batch. Files that a job has not processed by its end never will be.

    A batch is completed when all its files have ended, even if its job has not ended yet: the SDKs' helpers wait for
    the files.
    """
    left = job.total - totals.completed - totals.failed
    over = job.state in TERMINAL
    stopped = job.state == JobState.CANCELLED
    counts = FileCounts(
        in_progress=0 if over else left,
        completed=totals.completed,
        failed=totals.failed + (left if over and not stopped else 0),
        cancelled=left if over and stopped else 0,
        total=job.total,
    )
    return FileBatchObject(
        id=job.id,
        created_at=int(job.created_at),
        vector_store_id=job.payload["store_id"],
        status=BATCH_STATUS.get(job.state) or ("in_progress" if left or job.state in _STOPPING else "completed"),
        file_counts=counts,
        **dependence(job, after),
    )


def show_content(document: Document | None) -> FileContentPage:
    return FileContentPage(data=[Text(text=document.text)] if document else [])


def show_search(queries: Sequence[str], results: SearchResults, include: Collection[SearchField]) -> SearchPage:
    """Return the page of a search. Of the fields that are not OpenAI's only those in `include` are set."""
    page = SearchPage(
        object="vector_store.search_results.page",
        search_query=list(queries),
        data=[show_hit(hit, include) for hit in results.chunks],
        has_more=False,
        next_page=None,
    )
    if "duplicates" in include:
        page.duplicates = results.duplicates
    return page


def show_hit(hit: FoundChunk, include: Collection[SearchField]) -> SearchResult:
    result = SearchResult(
        file_id=hit.file_id,
        filename=hit.filename,
        score=hit.score,
        attributes=hit.attributes,
        content=[Text(type="text", text=hit.text)],
    )
    if "chunk" in include:
        facts = {name: hit.meta.get(name) for name in ChunkFacts.model_fields} | {"n": hit.n}
        result.chunk = ChunkFacts(**facts)
    if "scores" in include:
        result.scores = ChunkScores(**msgspec.structs.asdict(hit.scores))
    return result
