"""Make pending removals from the vector database: of one document, a whole store, or vectors that no file points to.

    removals ─▶ vectors deleted ─▶ documents deleted from storage ─▶ bytes erased ─▶ receipts

Several removals are made together, because erasing bytes rewrites their neighbours. Searches find nothing of it
already, so it may wait while the vector database is unavailable. After a kill it is done again, which changes nothing.
"""

import logging
from functools import partial

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import WRITE_ROWS, execute_and_count
from jobs.ledger import audit, pauses
from jobs.platform.locks import hold_exclusively
from jobs.queues import Queue
from jobs.retrieval import attachments, documents, indexes
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from workers.runtime.context import Context
from workers.vectors.base import Store, VectorsUnavailable

log = logging.getLogger(__name__)
_AT_ONCE = 64


def purge(context: Context) -> None:
    """Make due removals for one `purge` message, unless another process of this host does.

    While the queue or this worker is paused they stay pending.
    """
    with (
        context.heartbeat.under_way.count_work(Queue.INGEST),
        hold_exclusively(context.config.data_dir / "run" / "purge") as locked,
    ):
        while locked and not context.stop.is_set() and (removals := _due_removals(context)):
            for store_id in dict.fromkeys(removal.store_id for removal in removals):
                _purge(context, [removal for removal in removals if removal.store_id == store_id])


def _purge(context: Context, removals: list[VectorRemoval]) -> None:
    """Make the removals of one store. If that fails, this store waits and the others go on."""
    try:
        removed = [(removal, _remove(context, removal)) for removal in removals]
        context.vectors.erase(_store_of(context, removals[0]))
    except Exception as error:  # noqa: BLE001  one unreadable store must not stop the others' removals
        log.warning("purge_waits", extra={"store": removals[0].store_id, "error": type(error).__name__})
        later = update(VectorRemoval).where(VectorRemoval.id.in_([removal.id for removal in removals]))
        context.db.retrying(lambda session: session.execute(later.values(due_at=now() + attachments.AGAIN_SECONDS)))
        return
    for removal, entries in removed:
        context.db.retrying(partial(_receipt, removal=removal, entries=entries))


def _due_removals(context: Context) -> list[VectorRemoval]:
    with context.db.read() as session:
        if pauses.current_pauses(session).rests(Queue.INGEST, context.worker_id):
            return []
        removals = select(VectorRemoval).where(attachments.due()).order_by(VectorRemoval.id)
        return list(session.scalars(removals.limit(_AT_ONCE)))


def _remove(context: Context, removal: VectorRemoval) -> int:
    """Make one removal; return the number of deleted vectors."""
    store = _store_of(context, removal)
    if removal.what == attachments.DOCUMENT:
        return _drop_document(context, store, str(removal.document))
    if removal.what == attachments.STORE:
        return 0 if _is_used(context, store.id) else _drop_store(context, store)
    return _drop_leftovers(context, store)


def _store_of(context: Context, removal: VectorRemoval) -> Store:
    """Return the store of a removal, with its present dimensions if it still exists.

    The dimensions may have been unknown when the removal was enqueued.
    """
    with context.db.read() as session:
        row = session.get(VectorStore, removal.store_id)
    dimensions = row.dimensions if row is not None else removal.dimensions
    return Store(removal.store_id, removal.project_id, removal.model, dimensions)


def _drop_document(context: Context, store: Store, key: str) -> int:
    removed = context.vectors.drop(store, [key])
    context.storage.delete(documents.path(store.id, attachments.version_of(key)))
    return removed


def _drop_store(context: Context, store: Store) -> int:
    entries = _count(context, store)
    context.vectors.drop_store(store)
    context.storage.delete(documents.folder(store.id))
    while context.db.retrying(lambda session: _forget_files(session, store.id)):
        context.db.breathe(context.stop)
    return entries


def _is_used(context: Context, store_id: str) -> bool:
    """Return whether the index to be removed exists and has not expired."""
    alive = or_(VectorStore.expires_at.is_(None), VectorStore.expires_at > now())
    used = select(VectorStore.id).where(VectorStore.id == store_id, alive, ~indexes.EMPTIED)
    with context.db.read() as session:
        return session.scalar(used) is not None


def _count(context: Context, store: Store) -> int:
    """Count the entries for the receipt; -1 if the store cannot be read, which does not prevent its removal."""
    try:
        return sum(context.vectors.counts(store).values())
    except VectorsUnavailable:
        return -1


def _forget_files(session: Session, store_id: str) -> int:
    ids = session.scalars(
        select(VectorStoreFile.id).where(VectorStoreFile.store_id == store_id).limit(WRITE_ROWS)
    ).all()
    session.execute(delete(VectorStoreFile).where(VectorStoreFile.store_id == store_id, VectorStoreFile.id.in_(ids)))
    return len(ids)


def _drop_leftovers(context: Context, store: Store) -> int:
    """Delete entries that existed before the query and that no file of the store points to."""
    keys = context.vectors.counts(store)
    prefix = f"{documents.folder(store.id)}/"
    objects = context.storage.list(documents.folder(store.id))
    with context.db.read() as session:
        files = select(VectorStoreFile.document, VectorStoreFile.version, VectorStoreFile.status)
        rows = session.execute(files.where(VectorStoreFile.store_id == store.id)).all()
    published = {document for document, _, _ in rows if document}
    live = {version for _, version, status in rows if status == attachments.IN_PROGRESS}
    dead = [key for key in keys if key not in published and attachments.version_of(key) not in live]
    if dead:
        context.vectors.drop(store, dead)
    needed = {attachments.version_of(key) for key in published} | live
    for path in objects:
        if path.removeprefix(prefix).removesuffix(".json") not in needed:
            context.storage.delete(path)
    return sum(keys[key] for key in dead)


def _receipt(session: Session, removal: VectorRemoval, entries: int) -> None:
    same = VectorRemoval.id == removal.id, VectorRemoval.created_at == removal.created_at
    if execute_and_count(session, delete(VectorRemoval).where(*same)) == 1:
        audit.record(
            session,
            actor="purge",
            action=f"vectors.purge_{removal.what}",
            target=removal.file_id or removal.store_id,
            project_id=removal.project_id,
            details={"store": removal.store_id, "document": removal.document, "entries": entries},
        )
