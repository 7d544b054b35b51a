"""The documents that a source has added to its store: a new version replaces the old one, and none is found twice.

new version attached ──completed──▶ the old one is removed and deleted, in the same transaction
          └──failed, cancelled──▶ the old one stays visible; the next sync tries again
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from jobs.clock import now
from jobs.db.engine import page_ids
from jobs.files.tables import File
from jobs.ledger import audit, events
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.retrieval import attachments
from jobs.retrieval.attachments import Made
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import Source, SourceItem, VectorStore, VectorStoreFile

#: Statuses of a source.
IN_PROGRESS, COMPLETED, FAILED = attachments.IN_PROGRESS, attachments.COMPLETED, attachments.FAILED
#: Changes of an item in a sync.
ADDED, CHANGED, UNCHANGED, REMOVED = "added", "changed", "unchanged", "removed"
COUNTED: Final = ("seen", ADDED, CHANGED, REMOVED, UNCHANGED, FAILED)
#: Events of a sync, recorded before the last event of its job.
EVENTS: Final = dict.fromkeys(("vector_store.source.synced", "vector_store.source.failed"), "vss_")
_SYNCED, _NOT_SYNCED = EVENTS


def digest(key: str) -> str:
    """Return the digest of a key, because keys are too long for an index."""
    return hashlib.sha256(key.encode()).hexdigest()


def replace(session: Session, index: VectorStore, made: Sequence[Made]) -> None:
    """Remove the old versions of documents whose new versions were published.

    In an index that is not in use they stay, `is_outlived`; `remove_old_versions` removes them if it comes into use.
    """
    store = session.get(VectorStore, index.root) if made else None
    if store is not None and store.current_id == index.id:
        _replace(session, store, SourceItem.file_id.in_([row.file_id for row in made]))


def remove_old_versions(session: Session, store: VectorStore) -> None:
    """Remove old versions whose new versions are in an index that has come into use."""
    shown = VectorStoreFile.store_id == store.current_id, VectorStoreFile.document.is_not(None)
    _replace(session, store, SourceItem.file_id.in_(select(VectorStoreFile.id).where(*shown)))


def is_outlived() -> ColumnElement[bool]:
    """Return the condition that the next version of a file's document is published in the same index.

    A search that began before another index came into use still reads this one.
    """
    newer = aliased(VectorStoreFile)
    both = newer.store_id == VectorStoreFile.store_id, newer.id == SourceItem.file_id, newer.document.is_not(None)
    return exists().where(SourceItem.previous_id == VectorStoreFile.id, *both)


def _replace(session: Session, store: VectorStore, newest: ColumnElement[bool]) -> None:
    newer = (
        select(SourceItem)
        .join(Source, Source.id == SourceItem.source_id)
        .where(newest, SourceItem.previous_id.is_not(None), Source.store_id == store.id)
        .order_by(SourceItem.digest)
        .with_for_update(of=SourceItem)
    )
    replaced: dict[str, list[str]] = {}
    for item in session.scalars(newer).all():
        replaced.setdefault(item.source_id, []).append(str(item.previous_id))
        item.previous_id = None
    for source_id, previous in sorted(replaced.items()):
        drop(session, previous, actor=f"source:{source_id}")


def drop(session: Session, file_ids: Collection[str], *, actor: str) -> None:
    """Delete files of a source, and remove them from all stores."""
    pages = list(page_ids(file_ids))
    files: list[tuple[str, str | None]] = []
    for page in pages:
        alive = select(File.id, File.project_id).where(File.id.in_(page), File.deleted_at.is_(None))
        files += [(file.id, file.project_id) for file in session.execute(alive.order_by(File.id).with_for_update())]
    attachments.remove_everywhere(session, file_ids)
    for page in pages:
        session.execute(update(File).where(File.id.in_(page), File.deleted_at.is_(None)).values(deleted_at=now()))
    audit.record_all(session, files, actor=actor, action="file.delete")


def record_end(session: Session, job: Job) -> None:
    """Record the result of a sync when its ingestion has ended."""
    source_id = job.payload.get("source_id")
    source = session.get(Source, source_id, with_for_update=True) if source_id else None
    if source is None or source.job_id != job.id:
        return
    store = session.get(VectorStore, source.store_id)
    in_use = store.current_id if store else index_of(job.payload)
    source.counts = _counts(session, source, job, in_use)
    error = source.error or _error(job)
    if in_use != index_of(job.payload) and source.seen and not source.counts[FAILED]:
        error = source.error  # the sync's target index does not matter: searches read another one, which has all of it
    source.status = FAILED if error else COMPLETED
    source.last_error = error or _partly(session, source)
    source.last_at = now()
    _tell(session, job, source, _NOT_SYNCED if error else _SYNCED)


def _counts(session: Session, source: Source, job: Job, index_id: str) -> dict[str, Any]:
    """Count the items of an index by result; an item that reached only another index has failed."""
    elsewhere = index_id != index_of(job.payload)
    counts: dict[str, Any] = dict.fromkeys(COUNTED, 0)
    counts.update(seen=source.seen, removed=source.removed)
    if not source.seen:
        return counts
    is_of_job = (SourceItem.job_id == job.id).label("ours")
    of_item = and_(VectorStoreFile.store_id == index_id, VectorStoreFile.id == SourceItem.file_id)
    grouped = (
        select(SourceItem.change, VectorStoreFile.status, is_of_job, func.count())
        .outerjoin(VectorStoreFile, of_item)
        .where(SourceItem.source_id == source.id)
        .group_by(SourceItem.change, VectorStoreFile.status, is_of_job)
    )
    for change, status, is_ours, count in session.execute(grouped):
        brought = is_ours and change in (ADDED, CHANGED)
        lacking = elsewhere and brought and status not in (attachments.COMPLETED, attachments.IN_PROGRESS)
        if change == FAILED or lacking or status in (attachments.FAILED, attachments.CANCELLED):
            counts[FAILED] += count
        elif brought:
            counts[change] += count
    counts[UNCHANGED] = max(0, source.seen - counts[ADDED] - counts[CHANGED] - counts[FAILED])
    return counts


def _error(job: Job) -> dict[str, Any] | None:
    if job.state == JobState.SUCCEEDED:
        return None
    if job.errors:
        return {"code": job.errors[0].get("code"), "message": job.errors[0].get("message")}
    return {"code": str(job.state), "message": f"The sync was {job.state}."}


def _partly(session: Session, source: Source) -> dict[str, Any] | None:
    """Return the error of the first failed item, if others succeeded."""
    assert source.counts is not None
    if not source.counts[FAILED]:
        return None
    of_source = SourceItem.source_id == source.id
    item = session.scalar(
        select(SourceItem).where(of_source, SourceItem.change == FAILED).order_by(SourceItem.key).limit(1)
    )
    message = f"{source.counts[FAILED]} of {source.seen} could not be brought in"
    if item is None:
        return {"code": "files_failed", "message": f"{message}: see the files of the batch."}
    return {
        "code": "items_failed",
        "message": f"{message}, such as {readable(item.key)}: {(item.error or {})['message']}",
    }


def readable(key: str) -> str:
    """Return a key for an error text, without the query of a URL, which may be a secret."""
    return key.partition("?")[0] if key.startswith(("http://", "https://")) else key


def _tell(session: Session, job: Job, source: Source, kind: str) -> None:
    """Record the event of a sync before the job's own last event, which takes the next number."""
    data = {"id": source.id, "vector_store_id": source.store_id}
    event = events.record(
        session, subject_id=job.id, seq=job.event_seq, project_id=job.project_id, type=kind, data=data
    )
    job.event_seq += 1
    session.flush()
    events.fan_out(session, event, job)
