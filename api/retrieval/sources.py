"""Sources of a vector store: URLs, a folder of the server, or an S3 prefix, which the store is synced with."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.idempotency import Idempotent
from api.http.paging import After, Before, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import check_not_full, count_if_due
from api.retrieval.queries import Attributes, get_store
from api.retrieval.schemas import ChunkingStrategy, LastError, Value, dump_chunking
from api.retrieval.store_files import POLL_AFTER, POLL_MS
from jobs.clock import now
from jobs.errors import DatabaseBusy, InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.platform.url_guard import parse
from jobs.requests.cron import next_after
from jobs.retrieval import source_locations, sources
from jobs.retrieval.source_items import IN_PROGRESS
from jobs.retrieval.tables import Source, SourceItem, VectorStore

ItemStatus = Literal["added", "changed", "unchanged", "removed", "failed"]


class SyncCounts(BaseModel):
    """Counts of documents in the last sync. `failed`: the store does not have their current version."""

    seen: int
    added: int
    changed: int
    removed: int
    unchanged: int
    failed: int


class SourceObject(BaseModel):
    """A source. `counts`, `last_error` and `last_synced_at` belong to the last sync that ended.

    When the time of a later sync passed without one, because the source's key may not sync it, `status` is `failed` and
    `last_error` says why. `file_batch_id` is the latest sync's file batch. `next_run_at` is null without a schedule.
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
    """A document of a source: its newest version, and the last change by a sync. `id` is the hash of its key."""

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
        last_synced_at=unix_seconds(source.last_at),
        file_batch_id=source.job_id,
        cron=source.cron,
        timezone=source.timezone,
        paused=source.paused_at is not None,
        next_run_at=unix_seconds(source.next_at),
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


router: APIRouter = resource("Vector store sources", area="vector_stores")

_MAX_URLS = 1000
_MAX_SOURCES = 100  # of one store
_CLEARED = 20  # transactions in the request that deletes a source; the dispatcher deletes the rest
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Digest = Annotated[str, Field(max_length=64)]


class CreateSource(Body):
    """`url` or `urls` for type `url`; `path` and `glob` for `folder`; `prefix` for `s3`."""

    type: Literal["url", "folder", "s3"]
    url: Url | None = None
    urls: Annotated[list[Url], Field(min_length=1, max_length=_MAX_URLS)] | None = None
    path: str | None = Field(default=None, min_length=1, max_length=4096, description="Absolute.")
    glob: str | None = Field(default=None, min_length=1, max_length=256, description="As `**/*.md`; hidden: never.")
    prefix: str | None = Field(default=None, min_length=1, max_length=1024, description="As `s3://bucket/folder`.")
    chunking_strategy: ChunkingStrategy | None = None
    attributes: Attributes | None = None
    cron: str | None = Field(default=None, min_length=1, max_length=128, description="When to sync again.")
    timezone: str | None = Field(default=None, min_length=1, max_length=64, description="As `Europe/Zurich`.")

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        allowed = {"url": {"url", "urls"}, "folder": {"path", "glob"}, "s3": {"prefix"}}[self.type]
        given = {name for name in ("url", "urls", "path", "glob", "prefix") if getattr(self, name) is not None}
        if given - allowed:
            raise ValueError(f"A source of type '{self.type}' takes no '{min(given - allowed)}'.")
        if len(given - {"glob"}) != 1:
            raise ValueError(f"A source of type '{self.type}' needs {' or '.join(sorted(allowed - {'glob'}))}.")
        if self.timezone is not None and self.cron is None:
            raise ValueError("A 'timezone' is nothing without a 'cron'.")
        return self


@router.post("/vector_stores/{vector_store_id}/sources", response_model=SourceObject)
def create_source(call: Call, once: Idempotent, vector_store_id: str, body: CreateSource) -> Response:
    """Create a source, and sync it now and on schedule: add new and changed documents, and remove deleted ones."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    spec = _spec(call, body)
    created = now()
    zone = (body.timezone or "UTC") if body.cron else None
    first = next_after(body.cron, zone, created) if body.cron and zone else None

    def make(session: Session) -> SourceObject:
        check_not_full(session, call)
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        _check_count(session, store)
        source = Source(
            id=new_id("vss_"),
            project_id=call.project_id,
            store_id=store.id,
            type=body.type,
            spec=spec,
            chunking=dump_chunking(body.chunking_strategy),
            attributes=body.attributes,
            cron=body.cron,
            timezone=zone,
            next_at=first,
            status="",
            created_at=created,
        )
        sources.sync(session, source, store, actor=call.actor, request_id=call.request_id, idempotency_key=once.key)
        session.add(source)
        call.record(session, "vector_store.source.create", source.id, {"store": store.id, "type": source.type})
        session.flush()
        return show_source(source)

    count_if_due(call)
    return once.run(fields, make)


@router.get("/vector_stores/{vector_store_id}/sources")
def list_sources(
    call: Call,
    vector_store_id: str,
    after: After = None,
    before: Before = None,
    limit: Limit20 = 20,
    order: Order = "desc",
) -> Page[SourceObject]:
    """List the sources of a store."""
    with call.db.read() as session:
        statement = select(Source).where(*_sources_of(get_store(session, call, vector_store_id)))
        cursor: dict[str, Any] = {"after": after, "before": before, "limit": limit, "order": order}
        deletions = deletion_details(call, "vector_store.source.delete", vector_store_id)
        rows, more = find(session, statement, Source, deletions=deletions, **cursor)
    return page(rows, more, show_source)


@router.get("/vector_stores/{vector_store_id}/sources/{source_id}")
def retrieve_source(call: Call, response: Response, vector_store_id: str, source_id: str) -> SourceObject:
    """Return one source with the result of its last sync."""
    with call.db.read() as session:
        source = _get(session, call, vector_store_id, source_id)
    if source.status == IN_PROGRESS:
        response.headers[POLL_AFTER] = str(POLL_MS)
    return show_source(source)


@router.get("/vector_stores/{vector_store_id}/sources/{source_id}/items")
def list_source_items(
    call: Call,
    vector_store_id: str,
    source_id: str,
    after: Annotated[Digest | None, Field(description="Id of the last item of the previous page.")] = None,
    limit: Limit20 = 20,
) -> Page[SourceItemObject]:
    """List the documents of a source, in no particular order, with the file of each or the error."""
    with call.db.read() as session:
        source = _get(session, call, vector_store_id, source_id)
        statement: Select[SourceItem] = select(SourceItem).where(SourceItem.source_id == source.id)
        if after is not None:
            if session.get(SourceItem, (source.id, after)) is None:
                raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
            statement = statement.where(SourceItem.digest > after)
        items = session.scalars(statement.order_by(SourceItem.digest).limit(limit + 1)).all()
    shown = [show_item(item) for item in items[:limit]]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return Page(data=shown, first_id=first, last_id=last, has_more=len(items) > limit)


@router.post("/vector_stores/{vector_store_id}/sources/{source_id}/sync")
def sync_source(call: Call, vector_store_id: str, source_id: str) -> SourceObject:
    """Sync now, and read failed documents again. A running sync is not restarted."""
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id, alive=True)
        source = _get(session, call, vector_store_id, source_id, lock=True)
        if source.type == "folder":
            _resolve_folder(call, source.spec["path"])
        if sources.sync(session, source, store, actor=call.actor, request_id=call.request_id, again=True):
            call.record(session, "vector_store.source.sync", source.id)
        return show_source(source)


@router.post("/vector_stores/{vector_store_id}/sources/{source_id}/pause")
def pause_source(call: Call, vector_store_id: str, source_id: str) -> SourceObject:
    """Stop scheduled syncs until the source is resumed. Pausing twice is not an error."""
    with call.db.write() as session:
        source = _get(session, call, vector_store_id, source_id, lock=True)
        if source.paused_at is None:
            source.paused_at = now()
            call.record(session, "vector_store.source.pause", source.id)
        return show_source(source)


@router.post("/vector_stores/{vector_store_id}/sources/{source_id}/resume")
def resume_source(call: Call, vector_store_id: str, source_id: str) -> SourceObject:
    """Continue with the next scheduled time. Missed syncs are not repeated."""
    with call.db.write() as session:
        source = _get(session, call, vector_store_id, source_id, lock=True)
        if source.paused_at is not None:
            source.paused_at, source.key_id = None, call.caller.key_id
            if source.cron is not None:
                source.next_at = next_after(source.cron, str(source.timezone), now())
            call.record(session, "vector_store.source.resume", source.id)
        return show_source(source)


@router.delete("/vector_stores/{vector_store_id}/sources/{source_id}")
def delete_source(call: Call, vector_store_id: str, source_id: str) -> SourceDeleted:
    """Delete a source. The files that it has added are removed from all stores and deleted."""
    with call.db.write() as session:
        source = _get(session, call, vector_store_id, source_id)
        sources.mark_for_deletion(session, source, actor=call.actor)
        call.record(
            session, "vector_store.source.delete", source.id, {"store": vector_store_id, **cursor_details(source)}
        )
    with suppress(DatabaseBusy):  # the dispatcher does the rest
        _purge(call, source_id)
    return SourceDeleted(id=source_id)


def _purge(call: CallContext, source_id: str) -> None:
    for _ in range(_CLEARED):
        with call.db.write() as session:
            if not sources.purge(session, source_id, actor=call.actor):
                return
        call.db.breathe()


def _sources_of(store: VectorStore) -> tuple[ColumnElement[bool], ...]:
    return Source.store_id == store.id, Source.deleted_at.is_(None)


def _get(session: Session, call: CallContext, store_id: str, source_id: str, *, lock: bool = False) -> Source:
    store = get_store(session, call, store_id)
    statement = select(Source).where(*_sources_of(store), Source.id == source_id)
    source = session.scalar(statement.with_for_update() if lock else statement)
    if source is None:
        message = f"No source found with id '{clip(source_id)}' in vector store '{store.id}'."
        raise NotFound(message, param="source_id")
    return source


def _check_count(session: Session, store: VectorStore) -> None:
    full = select(Source.id).where(*_sources_of(store)).offset(_MAX_SOURCES - 1).limit(1)
    if session.scalar(full) is not None:
        raise InvalidRequest(f"A vector store has at most {_MAX_SOURCES} sources.", code="too_many_sources")


def _resolve_folder(call: CallContext, path: str) -> Path:
    """Return the real path of a folder.

    Raises: InvalidRequest, if the operator does not allow it.
    """
    return source_locations.folder(call.config.source_folders, path, call.config.own_folders)


def _spec(call: CallContext, body: CreateSource) -> dict[str, Any]:
    """Return the stored form of a source. Raises: InvalidRequest, for locations that may not be read.

    Host names are resolved when the source is fetched.
    """
    if body.type == "folder":
        glob = body.glob or "**/*"
        if any(part in ("", ".", "..") for part in glob.split("/")):
            raise InvalidRequest("The glob is relative, without '..'.", param="glob", code="invalid_value")
        return {"path": str(_resolve_folder(call, body.path or "")), "glob": glob}
    if body.type == "s3":
        bucket, prefix = source_locations.prefix(call.config.source_s3, body.prefix or "")
        return {"prefix": f"s3://{bucket}/{prefix}"}
    param = "url" if body.url else "urls"
    urls = list(dict.fromkeys([body.url] if body.url else body.urls or ()))
    for url in urls:
        try:
            parse(url, allow_private=call.config.source_allow_private)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param=param, code=error.code) from error
    return {"urls": urls}
