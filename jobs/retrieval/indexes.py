"""Indexes of a vector store: the same files with different chunking or embeddings. Searches read one of them.

    store ──index_id──▶ the index in use       the first index is the store's own row, others are rows with a parent;
      ▲                                        rows of files, vectors and texts lie under the id of their index
      └──parent_id── index, index, …

    building ──▶ ready ──switch──▶ active ──another is switched to──▶ previous ──switch──▶ active
        └──▶ failed, cancelled ──sync──▶ building

An index has no stored status: it follows from the rows of its files. An attached file is added to every index, by one
job for each. A removed file is removed from every index, and attributes change in each. All this, and the switch, is
done under the lock of the store's row, so that no operation sees half of another.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from jobs.retrieval.tables import VectorStore, VectorStoreFile

BUILDING: Final = "building"
READY: Final = "ready"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
ACTIVE: Final = "active"
PREVIOUS: Final = "previous"
_IN_PROGRESS: Final = "in_progress"  # of a file

#: A store's own row whose index was removed: it is neither in use nor replaced.
EMPTIED: Final[ColumnElement[bool]] = and_(VectorStore.index_id.is_not(None), VectorStore.replaced_at.is_(None))


def index_of(payload: Mapping[str, Any]) -> str:
    """Return the id of the index that an ingestion with this payload fills."""
    return str(payload.get("index_id") or payload["store_id"])


def is_emptied(index: VectorStore) -> bool:
    return index.index_id is not None and index.replaced_at is None


def lock(session: Session, store_id: str) -> VectorStore | None:
    """Return a store as it is now, locked until the transaction ends."""
    statement = select(VectorStore).where(VectorStore.id == store_id, VectorStore.parent_id.is_(None))
    return session.scalar(statement.with_for_update().execution_options(populate_existing=True))


def keep(session: Session, index_id: str) -> VectorStore | None:
    """Return an index, and keep others from coming into use until the transaction ends; None if it does not exist."""
    parent = session.execute(select(VectorStore.parent_id).where(VectorStore.id == index_id)).first()
    if parent is None:
        return None
    root = select(VectorStore.id).where(VectorStore.id == (parent[0] or index_id)).with_for_update(read=True)
    if session.scalar(root) is None:
        return None
    return alive(session, index_id)


def alive(session: Session, index_id: str) -> VectorStore | None:
    """Return an index; None if it was removed."""
    index = session.get(VectorStore, index_id, populate_existing=True)
    return None if index is None or is_emptied(index) else index


def of(store: VectorStore) -> Select[VectorStore]:
    """Select the indexes of a store."""
    condition = or_(VectorStore.id == store.id, VectorStore.parent_id == store.id)
    return select(VectorStore).where(condition, ~EMPTIED)


def current(session: Session, store: VectorStore) -> VectorStore:
    """Return the index in use."""
    return session.get_one(VectorStore, store.current_id)


def all_of(session: Session, store: VectorStore) -> Sequence[VectorStore]:
    """Return the index in use first, then the others by age."""
    rows = session.scalars(of(store).order_by(VectorStore.created_at, VectorStore.id)).all()
    return sorted(rows, key=lambda row: row.id != store.current_id)


def rows_of(session: Session, store: VectorStore, file_id: str) -> list[tuple[VectorStore, VectorStoreFile]]:
    """Return a file's row in each of a store's indexes, locked in one order."""
    both = of(store).add_columns(VectorStoreFile).join(VectorStoreFile, VectorStoreFile.store_id == VectorStore.id)
    theirs = both.where(VectorStoreFile.id == file_id).order_by(VectorStoreFile.store_id)
    pairs = session.execute(theirs.with_for_update(of=VectorStoreFile).execution_options(populate_existing=True))
    return [(index, row) for index, row in pairs]


def missing(store: VectorStore, index: VectorStore) -> Select[str]:
    """Select files that are in the index in use and not in this one, or are being added only to the first."""
    here, there = VectorStoreFile, aliased(VectorStoreFile)
    coming = and_(here.document.is_(None), there.status == _IN_PROGRESS)
    present = exists().where(there.store_id == index.id, there.id == here.id, or_(there.document.is_not(None), coming))
    in_use = or_(here.document.is_not(None), here.status == _IN_PROGRESS)
    return select(here.id).where(here.store_id == store.current_id, in_use, ~present)


def count_missing(session: Session, store: VectorStore, index: VectorStore) -> int:
    return session.scalar(select(func.count()).select_from(missing(store, index).subquery())) or 0


def lacking(session: Session, store: VectorStore, index: VectorStore) -> dict[str | None, int]:
    """Count the files that an index lacks by their status in it; under None those without a row there."""
    lacks, there = missing(store, index).subquery(), VectorStoreFile
    join = and_(there.id == lacks.c.id, there.store_id == index.id)
    counted = select(there.status, func.count()).select_from(lacks).outerjoin(there, join).group_by(there.status)
    return dict(session.execute(counted).all())


def status(store: VectorStore, index: VectorStore, counts: dict[str, int], lacks: dict[str | None, int]) -> str:
    """Return the status of an index. `counts` are its files by status, `lacks` the missing ones by status."""
    if index.id == store.current_id:
        return ACTIVE
    if index.replaced_at is not None:
        return PREVIOUS
    if counts.get(_IN_PROGRESS):
        return BUILDING
    if not lacks:
        return READY
    if lacks.get(CANCELLED):
        return CANCELLED
    return FAILED if lacks.get(FAILED) else BUILDING  # files of a running sync are added when all are read
