"""Check that vectors and texts are exactly those in SQL: `python -m workers.retrieval.verification [--repair]`.

    SQL: a file's document has so many entries ──┬─ fewer, or others ─▶ missing: ingested again
                          and a text in storage ─┤─ none ─▶ likewise
                                                 └─ a document that no file has ─▶ left over: removed
    a store that SQL does not know ─▶ removed

Files in ingestion and pending removals are no faults; nor are faults that a second check does not find, because work
goes on meanwhile. The repair submits jobs and removals for the workers; each fault is reported in one line.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

import jobs.known_kinds  # noqa: F401 (fills the table that every move of a job looks at)
from jobs.db.engine import Database
from jobs.errors import StorageUnavailable
from jobs.files.tables import File
from jobs.ledger import audit
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.platform.storage import Storage, open_storage
from jobs.programs import DIFFERS
from jobs.retrieval import attachments, documents, indexes, ingestions
from jobs.retrieval.attachments import IN_PROGRESS, Attachment
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from jobs.settings import Settings, settings
from workers.runtime.context import LazyVectors
from workers.vectors.base import Store, Vectors, VectorsUnavailable
from workers.vectors.open_vectors import store_of

ACTOR = "cli:verify"
_AT_ONCE = 200


@dataclass(slots=True)
class StoreFaults:
    """The faults of one store. `unknown`: SQL does not have the store."""

    store_id: str
    missing: Sequence[VectorStoreFile] = ()
    textless: Sequence[VectorStoreFile] = ()
    left_over: Sequence[str] = ()
    unknown: bool = False

    def __bool__(self) -> bool:
        return bool(self.missing or self.textless or self.left_over or self.unknown)

    def lines(self) -> Iterator[str]:
        if self.unknown:
            yield f"{self.store_id}: there is no such store, but it has vectors"
        for row in self.missing:
            yield f"{self.store_id}: {row.id} has not the {row.entries} entries that it should have"
        for row in self.textless:
            yield f"{self.store_id}: {row.id} has not the text that it should have"
        if self.left_over:
            yield f"{self.store_id}: {len(self.left_over)} documents belong to no file"

    def common(self, other: "StoreFaults") -> "StoreFaults":
        """Return the faults that were found twice."""
        missing, textless = ({row.document for row in rows} for rows in (other.missing, other.textless))
        left_over = set(other.left_over)
        return StoreFaults(
            self.store_id,
            [row for row in self.missing if row.document in missing],
            [row for row in self.textless if row.document in textless],
            [key for key in self.left_over if key in left_over],
        )


@dataclass(slots=True)
class Verification:
    stores: int
    files: int
    faults: list[StoreFaults]


def verify(db: Database, vectors: Vectors, storage: Storage) -> Verification:
    """Compare all stores. Raises VectorsUnavailable, StorageUnavailable."""
    unknown = _unknown_stores(db, vectors)
    if unknown:
        unknown &= _unknown_stores(db, vectors)
    with db.read() as session:
        stores = session.scalars(select(VectorStore)).all()
    known = sum(store.parent_id is None for store in stores)
    verdict = Verification(known, 0, [StoreFaults(name, unknown=True) for name in sorted(unknown)])
    for store in stores:
        fault, files = _look(db, vectors, storage, store.id)
        if fault:
            again, files = _look(db, vectors, storage, store.id)
            fault = fault.common(again)
        verdict.files += files
        verdict.faults += [fault] if fault else []
    return verdict


def _unknown_stores(db: Database, vectors: Vectors) -> set[str]:
    there = vectors.stores()  # before SQL: a store that is created meanwhile counts as known
    with db.read() as session:
        known = set(session.scalars(select(VectorStore.id)))
        going = set(session.scalars(select(VectorRemoval.store_id).where(VectorRemoval.what == attachments.STORE)))
    return set(there) - known - going


def _look(db: Database, vectors: Vectors, storage: Storage, store_id: str) -> tuple[StoreFaults, int]:
    with db.read() as session:
        store = session.get(VectorStore, store_id)
    if store is None:
        return StoreFaults(store_id), 0
    where = store_of(store)
    before = vectors.counts(where)
    with db.read() as session:
        jobs = _live_jobs(session, store)
        rows = session.scalars(select(VectorStoreFile).where(VectorStoreFile.store_id == store.id)).all()
        removals = session.scalars(select(VectorRemoval).where(VectorRemoval.store_id == store.id)).all()
        deleted = session.get(VectorStore, store.id) is None
    pending = {removal.what for removal in removals}
    if deleted or attachments.STORE in pending:
        return StoreFaults(store.id), 0
    published = {str(row.document): row for row in rows if row.document}
    after = vectors.counts(where) if any(key not in before for key in published) else before
    missing = [row for key, row in published.items() if not _is_whole(vectors, where, row, after.get(key, 0))]
    texts = set(storage.list(documents.folder(store.id))) if published else set()
    textless = [row for key, row in published.items() if _text_of(store, key) not in texts]
    going = {removal.document for removal in removals}
    dead = [key for key in before if key not in published and key not in going]
    if attachments.LEFTOVERS in pending:
        dead = []
    return StoreFaults(store.id, missing, textless, _leftover_keys(dead, rows, jobs)), len(published)


def _live_jobs(session: Session, store: VectorStore) -> dict[str, int]:
    """Return the jobs that add files to this index now, with the number of files of each."""
    live = Job.project_id == store.project_id, Job.kind == ingestions.NAME, Job.state.in_(LIVE)
    rows = session.execute(select(Job.id, Job.total, Job.payload).where(*live))
    return {job_id: total for job_id, total, payload in rows if index_of(payload) == store.id}


def _leftover_keys(keys: list[str], rows: Sequence[VectorStoreFile], jobs: dict[str, int]) -> list[str]:
    """Return the keys that belong to no file and to no live job. A live job removes its leftovers at its end.

    Return none while a live job writes files that were removed or attached again: their keys are unknown.
    """
    has = Counter(row.job_id for row in rows)
    if any(has[job_id] < total for job_id, total in jobs.items()):
        return []
    live = {row.version for row in rows if row.status == IN_PROGRESS or row.job_id in jobs}
    return [key for key in keys if attachments.version_of(key) not in live]


def _text_of(store: VectorStore, key: str) -> str:
    return documents.path(store.id, attachments.version_of(key))


def _is_whole(vectors: Vectors, store: Store, row: VectorStoreFile, count: int) -> bool:
    return count == row.entries and vectors.numbers(store, str(row.document)) == list(range(row.entries))


def repair(db: Database, verdict: Verification) -> None:
    """Submit the repair, each store in its own transactions."""
    for fault in verdict.faults:
        lacking = sorted({row.id for row in (*fault.missing, *fault.textless)})
        for start in range(0, max(1, len(lacking)), _AT_ONCE):
            with db.write() as session:
                _repair(session, fault, lacking[start : start + _AT_ONCE])


def _repair(session: Session, fault: StoreFaults, file_ids: Sequence[str]) -> None:
    store = session.get(VectorStore, fault.store_id)
    if store is None:
        attachments.remove_unknown_store(session, fault.store_id)
        project_id = None
    else:
        project_id = store.project_id
        if fault.left_over:
            attachments.enqueue_removal(session, store, attachments.LEFTOVERS)
        _reingest(session, store, file_ids)
    details = {"files": len(file_ids), "left_over": len(fault.left_over)}
    audit.record(
        session, actor=ACTOR, action="vectors.repair", target=fault.store_id, project_id=project_id, details=details
    )


def _reingest(session: Session, store: VectorStore, file_ids: Sequence[str]) -> None:
    """Ingest files again, without the recipe by which they would count as unchanged."""
    root = indexes.lock(session, store.root)
    if root is None:
        return
    there = select(VectorStoreFile).join(File, File.id == VectorStoreFile.id).where(File.deleted_at.is_(None))
    there = there.where(VectorStoreFile.store_id == store.id, VectorStoreFile.id.in_(file_ids))
    attached = session.scalars(there.order_by(VectorStoreFile.id).with_for_update(read=True, of=File))
    rows = [row for row in attached if row.status != IN_PROGRESS]
    for row in rows:
        row.recipe = None
    session.flush()
    if rows:
        files = [Attachment(row.id, row.filename, row.chunking, row.attributes) for row in rows]
        ingestions.create_ingestion(session, store, files, actor=ACTOR, beside=store.id != root.current_id)


def main(config: Settings, *, repairs: bool) -> int:
    """Print the faults. Return 0 if there are none or the repair was submitted, and DIFFERS otherwise."""
    with closing(Database(config.database, patience=10)) as db:
        try:
            verdict = verify(db, LazyVectors(db).get(config), open_storage(config.storage))
        except VectorsUnavailable as error:
            sys.stderr.write(f"the vector database cannot be reached: {error}\n")
            return 2
        except StorageUnavailable as error:
            sys.stderr.write(f"{error}\n")
            return 2
        for fault in verdict.faults:
            _tell(*fault.lines())
        _tell(
            f"{verdict.stores} stores, {verdict.files} files compared: {len(verdict.faults) or 'no'} stores with faults"
        )
        if verdict.faults and repairs:
            repair(db, verdict)
            _tell("the workers will repair it; verify again when they have")
        return 0 if repairs or not verdict.faults else DIFFERS


def _tell(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main(settings(), repairs="--repair" in sys.argv[1:]))
