"""`python -m workers.verifying [--repair]`: is in the vector database exactly what SQL says is there?

    SQL: a file's document has so many entries ──┬─ fewer, or others ─▶ missing: brought in again
                                                 └─ a document that no file has ─▶ left over: removed
    a store that SQL does not know ─▶ removed

What is being brought in, and what is owed for removal already, is no fault. The repair owes work to the workers, as
any client does; what it finds is told in one line each.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import attachments, audit, indexes, ingestions
from jobs.attachments import IN_PROGRESS, Attachment
from jobs.db import Database
from jobs.models import File, VectorRemoval, VectorStore, VectorStoreFile
from jobs.settings import Settings, settings
from workers.context import Late
from workers.vectors.port import Store, Vectors, VectorsAway
from workers.vectors.rows import store_of

ACTOR = "cli:verify"
_AT_ONCE = 200


@dataclass(slots=True)
class Found:
    """The faults of one store. `stranger`: SQL does not know it."""

    store_id: str
    missing: Sequence[VectorStoreFile] = ()
    left_over: Sequence[str] = ()
    stranger: bool = False

    def lines(self) -> Iterator[str]:
        if self.stranger:
            yield f"{self.store_id}: there is no such store, but it has vectors"
        for row in self.missing:
            yield f"{self.store_id}: {row.id} has not the {row.entries} entries that it should have"
        if self.left_over:
            yield f"{self.store_id}: {len(self.left_over)} documents belong to no file"


@dataclass(slots=True)
class Verdict:
    stores: int
    files: int
    faults: list[Found]


def verify(db: Database, vectors: Vectors) -> Verdict:
    """Compare all stores. Raises VectorsAway."""
    there = vectors.stores()  # before SQL is asked: what is made meanwhile is no stranger
    with db.read() as session:
        stores = {store.id: store for store in session.scalars(select(VectorStore))}
        going = set(session.scalars(select(VectorRemoval.store_id).where(VectorRemoval.what == attachments.STORE)))
    strangers = [name for name in there if name not in stores and name not in going]
    known = sum(store.parent_id is None for store in stores.values())
    verdict = Verdict(known, 0, [Found(name, stranger=True) for name in strangers])
    for store in stores.values():
        if store.id in going:
            continue
        found, files = _compare(db, vectors, store)
        verdict.files += files
        verdict.faults += [found] if found.missing or found.left_over else []
    return verdict


def _compare(db: Database, vectors: Vectors, store: VectorStore) -> tuple[Found, int]:
    where = store_of(store)
    before = vectors.counts(where)
    with db.read() as session:
        rows = session.scalars(select(VectorStoreFile).where(VectorStoreFile.store_id == store.id)).all()
        owed = set(session.scalars(select(VectorRemoval.document).where(VectorRemoval.store_id == store.id)))
        leftovers = session.scalars(
            select(VectorRemoval.id).where(
                VectorRemoval.store_id == store.id, VectorRemoval.what == attachments.LEFTOVERS
            )
        ).first()
    published = {str(row.document): row for row in rows if row.document}
    live = {row.version for row in rows if row.status == IN_PROGRESS}
    after = vectors.counts(where) if any(key not in before for key in published) else before
    missing = [row for key, row in published.items() if not _whole(vectors, where, row, after.get(key, 0))]
    dead = [key for key in before if key not in published and key not in owed]
    dead = [key for key in dead if attachments.version_of(key) not in live]
    return Found(store.id, missing, () if leftovers else dead), len(published)


def _whole(vectors: Vectors, store: Store, row: VectorStoreFile, count: int) -> bool:
    return count == row.entries and vectors.numbers(store, str(row.document)) == list(range(row.entries))


def repair(db: Database, verdict: Verdict) -> None:
    """Owe what mends it: each store in its own transactions."""
    for fault in verdict.faults:
        for start in range(0, max(1, len(fault.missing)), _AT_ONCE):
            page = fault.missing[start : start + _AT_ONCE]
            with db.write() as session:
                _repair(session, fault, [row.id for row in page])


def _repair(session: Session, fault: Found, file_ids: Sequence[str]) -> None:
    store = session.get(VectorStore, fault.store_id)
    if store is None:
        attachments.owe_stranger(session, fault.store_id)
        project_id = None
    else:
        project_id = store.project_id
        if fault.left_over:
            attachments.owe(session, store, attachments.LEFTOVERS)
        _again(session, store, file_ids)
    details = {"files": len(file_ids), "left_over": len(fault.left_over)}
    audit.record(
        session, actor=ACTOR, action="vectors.repair", target=fault.store_id, project_id=project_id, details=details
    )


def _again(session: Session, store: VectorStore, file_ids: Sequence[str]) -> None:
    """Bring files in anew, which would otherwise be taken for unchanged."""
    root = indexes.lock(session, store.root)
    if root is None:
        return
    there = select(VectorStoreFile).join(File, File.id == VectorStoreFile.id).where(File.deleted_at.is_(None))
    there = there.where(VectorStoreFile.store_id == store.id, VectorStoreFile.id.in_(file_ids))
    found = session.scalars(there.order_by(VectorStoreFile.id).with_for_update(read=True, of=File))
    rows = [row for row in found if row.status != IN_PROGRESS]
    for row in rows:
        row.recipe = None
    session.flush()
    if rows:
        files = [Attachment(row.id, row.filename, row.chunking, row.attributes) for row in rows]
        ingestions.into(session, store, files, actor=ACTOR, beside=store.id != root.current_id)


def main(config: Settings, *, mend: bool) -> int:
    """Tell what was found. 0: all is as it should be, or is owed its repair."""
    with closing(Database(config.database, patience=10)) as db:
        try:
            verdict = verify(db, Late(db).get(config))
        except VectorsAway as error:
            sys.stderr.write(f"the vector database cannot be reached: {error}\n")
            return 2
        for fault in verdict.faults:
            _tell(*fault.lines())
        _tell(
            f"{verdict.stores} stores, {verdict.files} files compared: {len(verdict.faults) or 'no'} stores with faults"
        )
        if verdict.faults and mend:
            repair(db, verdict)
            _tell("the workers are told to mend it; verify again when they have")
        return 0 if mend or not verdict.faults else 1


def _tell(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main(settings(), mend="--repair" in sys.argv[1:]))
