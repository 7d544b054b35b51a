"""A source of a vector store, as the API shows it."""

from typing import Any, Literal

from pydantic import BaseModel

from api.http.fields import when
from api.retrieval.schemas import LastError, Value
from jobs.retrieval.tables import Source, SourceItem

ItemStatus = Literal["added", "changed", "unchanged", "removed", "failed"]


class SyncCounts(BaseModel):
    """Of the documents that the last sync saw, and of those that it saw no more. `failed`: not in as they are now."""

    seen: int
    added: int
    changed: int
    removed: int
    unchanged: int
    failed: int


class SourceObject(BaseModel):
    """`counts`, `last_error` and `last_synced_at` are of the last sync that ended; `status` is in progress meanwhile.

    `file_batch_id` is that of the latest: a file batch like any other. `next_run_at` is null without a schedule.
    """

    id: str
    object: Literal["vector_store.source"] = "vector_store.source"
    created_at: int
    vector_store_id: str
    type: Literal["url", "folder", "s3"]
    urls: list[str] | None
    path: str | None
    glob: str | None
    prefix: str | None
    chunking_strategy: dict[str, Any] | None
    attributes: dict[str, Value] | None
    status: Literal["in_progress", "completed", "failed"]
    counts: SyncCounts | None
    last_error: LastError | None
    last_synced_at: int | None
    file_batch_id: str | None
    cron: str | None
    timezone: str | None
    paused: bool
    next_run_at: int | None


class SourceDeleted(BaseModel):
    id: str
    object: Literal["vector_store.source.deleted"] = "vector_store.source.deleted"
    deleted: bool = True


class SourceItemObject(BaseModel):
    """A document of a source: its newest version, and what the last sync that was about it did. `id` is its key's."""

    id: str
    object: Literal["vector_store.source.item"] = "vector_store.source.item"
    key: str
    file_id: str | None
    previous_file_id: str | None
    last_change: ItemStatus
    last_error: LastError | None


def show_source(source: Source) -> SourceObject:
    spec = {name: source.spec.get(name) for name in ("urls", "path", "glob", "prefix")}
    return SourceObject(
        id=source.id,
        created_at=int(source.created_at),
        vector_store_id=source.store_id,
        type=source.type,
        **spec,
        chunking_strategy=source.chunking,
        attributes=source.attributes,
        status=source.status,
        counts=SyncCounts(**source.counts) if source.counts else None,
        last_error=LastError(**source.last_error) if source.last_error else None,
        last_synced_at=when(source.last_at),
        file_batch_id=source.job_id,
        cron=source.cron,
        timezone=source.timezone,
        paused=source.paused_at is not None,
        next_run_at=when(source.next_at),
    )


def show_item(item: SourceItem) -> SourceItemObject:
    return SourceItemObject(
        id=item.digest,
        key=item.key,
        file_id=item.file_id,
        previous_file_id=item.previous_id,
        last_change=item.change,
        last_error=LastError(**item.error) if item.error else None,
    )
