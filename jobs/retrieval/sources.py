"""Sources of vector stores: URLs, a folder or an S3 prefix that a store is kept in step with.

    create, sync, due ──▶ a file batch without files ──planned──▶ source listed, compared, fetched; what is new or has
                          (none while one is alive)                changed is attached, what is gone is removed
                          │                         └─ cannot be listed ─▶ failed; the store stays as it is
                          └─ due, but the key may not ─▶ failed, and no job

So a sync is a job with claims, heartbeats, revocation, cancellation and events like any other. A source is synced for
its key: the one with which a client last created, synced or resumed it. When a source or its store is deleted, its
files are deleted too, in batches.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest
from jobs.ledger import audit, ledger
from jobs.ledger.tables import Job
from jobs.requests.cron import next_after
from jobs.retrieval import indexes, ingestions, source_items
from jobs.retrieval.attachments import is_over
from jobs.retrieval.source_items import FAILED, IN_PROGRESS
from jobs.retrieval.tables import Source, SourceItem, VectorStore
from jobs.security.ended_keys import REFUSALS, find_refusal

#: Items whose files are deleted in one transaction: some rows each.
ITEMS_AT_ONCE = 20


def sync(session: Session, source: Source, store: VectorStore, *, actor: str, **columns: Any) -> Job | None:
    """Begin to sync a source, whose row is locked, for the key of the actor. Return None while it is syncing."""
    if source.status == IN_PROGRESS:
        return None
    job = ingestions.submit(
        session, store, (), actor=actor, prefix=ingestions.FILE_BATCH, source_id=source.id, **columns
    )
    source.status, source.job_id, source.key_id, source.began_at = IN_PROGRESS, job.id, job.key_id, None
    source.seen, source.removed, source.error = 0, 0, None
    return job


def due(session: Session, limit: int = 100) -> Sequence[str]:
    """Return the sources whose next sync is due."""
    return session.scalars(select(Source.id).where(*_is_due(now())).order_by(Source.next_at).limit(limit)).all()


def _is_due(at: float) -> tuple[ColumnElement[bool], ...]:
    return Source.paused_at.is_(None), Source.deleted_at.is_(None), Source.next_at <= at


def fire(session: Session, source_id: str) -> Job | None:
    """Sync a source that is due, and compute its next time.

    Return None if the source is not due, is still syncing, or belongs to a key that may not sync it any more.
    """
    at = now()
    source = session.scalar(select(Source).where(Source.id == source_id, *_is_due(at)).with_for_update())
    if source is None:
        return None
    try:
        source.next_at = next_after(str(source.cron), str(source.timezone), at)
    except InvalidRequest as error:  # it was valid once; time zones depend on the system
        source.paused_at = at
        _miss(session, source, error.code, error.message)
        return None
    if (
        source.status == IN_PROGRESS
    ):  # its sync locks the store first and then this row: waiting for the store here would deadlock
        return None
    if source.key_id and (code := find_refusal(session, source.key_id, "api.vector_stores.write")):
        source.status = FAILED
        _miss(session, source, code, REFUSALS[code])
        return None
    store = indexes.lock(session, source.store_id)
    if store is None or is_over(store):
        return None
    return sync(session, source, store, actor=_actor(source), key_id=source.key_id)


def _miss(session: Session, source: Source, code: str | None, message: str) -> None:
    source.last_error = {"code": code, "message": message}
    actor, action = _actor(source), "vector_store.source.miss"
    audit.record(session, actor=actor, action=action, target=source.id, project_id=source.project_id)


def _actor(source: Source) -> str:
    return f"source:{source.id}"


def mark_for_deletion(session: Session, source: Source, *, actor: str) -> None:
    """Hide a source from now on and stop its sync; `purge` removes what it has brought."""
    stopped = _stop(session, source.job_id, actor)  # lock jobs before sources, as at the end of a job
    locked = select(Source).where(Source.id == source.id).with_for_update()
    source_now = session.scalar(locked.execution_options(populate_existing=True))
    if source_now is None:
        return
    source_now.deleted_at = now()
    if source_now.job_id != stopped:  # a sync that began at this moment
        _stop(session, source_now.job_id, actor)


def _stop(session: Session, job_id: str | None, actor: str) -> str | None:
    """Cancel the sync's job, if any, and return its id."""
    if job_id is not None:
        with suppress(Conflict):  # it is ending
            ledger.cancel(session, job_id, actor=actor)
    return job_id


def pending_deletion(session: Session, limit: int = 20) -> Sequence[Source]:
    """Return the sources that were deleted, or whose store is gone or over."""
    alive = exists().where(
        VectorStore.id == Source.store_id, or_(VectorStore.expires_at.is_(None), VectorStore.expires_at > now())
    )
    return session.scalars(select(Source).where(or_(Source.deleted_at.is_not(None), ~alive)).limit(limit)).all()


def purge(session: Session, source_id: str, *, actor: str) -> bool:
    """Remove some documents of a source that is pending deletion; return False when none were left."""
    store_id = session.scalar(select(Source.store_id).where(Source.id == source_id))
    indexes.lock(session, store_id or "")  # lock it before items and files, as publishing does
    statement = select(SourceItem).where(SourceItem.source_id == source_id).order_by(SourceItem.digest)
    items = session.scalars(statement.limit(ITEMS_AT_ONCE).with_for_update()).all()
    strip(session, items, actor=actor)
    for item in items:
        session.delete(item)
    if not items:
        session.execute(delete(Source).where(Source.id == source_id))
    return bool(items)


def strip(session: Session, items: Sequence[SourceItem], *, actor: str) -> int:
    """Remove all versions of these items; return how many items had one."""
    with_files = [item for item in items if item.file_id]
    files = {file_id for item in with_files for file_id in (item.file_id, item.previous_id) if file_id}
    if files:
        source_items.drop(session, sorted(files), actor=actor)
    for item in with_files:
        item.file_id = item.previous_id = item.sha256 = None
    session.flush()
    return len(with_files)
