"""The cache of vectors and answers: results that a project may get again. Losing one costs only time.

    key: SHA-256 of the project, the model and all that the result depends on ──▶ a value, for a time

A row is found until it expires, unless its project's cache was cleared since its request, or a file of its job was
deleted. Rows that cannot be found any more are removed later, some at a time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    SQLColumnExpression,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from jobs.db.engine import UNSEEN, insert_into
from jobs.files.tables import File
from jobs.inference.tables import CacheEntry, CacheEpoch, CacheUse
from jobs.ledger.tables import Job

KEYS_AT_ONCE = 500  # in one statement
_FILES = (Job.input_file_id, Job.output_file_id)  # of a job; the error file has no answers

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class CachedValue:
    """A cached value. `tokens` is the number of tokens of the input."""

    value: bytes
    tokens: int
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A value to store. `epoch` is the epoch of the project's cache when the request came."""

    key: bytes
    project_id: str
    epoch: int
    value: bytes
    tokens: int
    created_at: float
    expires_at: float
    job_id: str | None = None


def find(session: Session, keys: Sequence[bytes], at: float) -> dict[bytes, CachedValue]:
    """Return the entries of these keys."""
    columns = CacheEntry.key, CacheEntry.value, CacheEntry.tokens, CacheEntry.created_at, CacheEntry.expires_at
    seen = (
        select(*columns)
        .outerjoin(CacheEpoch, CacheEpoch.project_id == CacheEntry.project_id)
        .where(CacheEntry.epoch == func.coalesce(CacheEpoch.epoch, 0), CacheEntry.expires_at > at, _is_not_deleted())
    )
    entries: dict[bytes, CachedValue] = {}
    for start in range(0, len(keys), KEYS_AT_ONCE):
        rows = session.execute(seen.where(CacheEntry.key.in_(keys[start : start + KEYS_AT_ONCE])))
        entries.update({row.key: CachedValue(row.value, row.tokens, row.created_at, row.expires_at) for row in rows})
    return entries


def epochs(session: Session, project_ids: Collection[str]) -> dict[str, int]:
    """Return how often the cache of each project was cleared."""
    statement = select(CacheEpoch.project_id, CacheEpoch.epoch).where(CacheEpoch.project_id.in_(project_ids))
    return dict.fromkeys(project_ids, 0) | {row.project_id: row.epoch for row in session.execute(statement)}


def put(session: Session, entries: Sequence[NewEntry]) -> None:
    """Store entries whose key has no usable entry yet.

    Of two entries that were computed at once the first stays, so that clients get the same answer each
    time. Call this first in a transaction. Keys are written in order, so that two writers of the same keys cannot
    deadlock.
    """
    firsts: dict[bytes, NewEntry] = {}
    for entry in sorted(entries, key=lambda entry: -entry.epoch):
        firsts.setdefault(entry.key, entry)
    rows = [
        {
            "key": entry.key,
            "project_id": entry.project_id,
            "epoch": entry.epoch,
            "job_id": entry.job_id,
            "tokens": entry.tokens,
            "size": len(entry.value),
            "created_at": entry.created_at,
            "expires_at": entry.expires_at,
            "value": entry.value,
        }
        for entry in sorted(firsts.values(), key=lambda entry: entry.key)
    ]
    if rows:
        insert = insert_into(session, CacheEntry)
        new = insert.excluded
        again = {name: new[name] for name in rows[0] if name != "key"}
        unfit = or_(
            CacheEntry.epoch < new.epoch,
            CacheEntry.expires_at <= new.created_at,
            CacheEntry.created_at <= 2 * new.created_at - new.expires_at,  # older than its client accepts
            ~_is_not_deleted(literal_column("cached.job_id")),
        )
        session.execute(insert.on_conflict_do_update(index_elements=["key"], set_=again, where=unfit), rows)


def prolong(session: Session, keys: Sequence[bytes], expires_at: float) -> None:
    """Prolong the entries that were used, but skip rows that another transaction has locked."""
    used = update(CacheEntry).where(
        CacheEntry.key.in_(_free(session, select(CacheEntry.key).where(CacheEntry.key.in_(keys))))
    )
    session.execute(used.values(expires_at=expires_at), execution_options=UNSEEN)


def size(session: Session) -> int:
    """Return the bytes of all values, read from an index."""
    return int(session.scalar(select(func.coalesce(func.sum(CacheEntry.size), 0))) or 0)


def evict(session: Session, rows: int) -> int:
    """Remove the entries that expire first; return their bytes."""
    return sum(_delete(session, select(CacheEntry.key).order_by(CacheEntry.expires_at).limit(rows)))


def count(session: Session, uses: Mapping[str, tuple[int, int]]) -> None:
    """Add hits and misses, by kind."""
    for kind, (hits, misses) in sorted(uses.items()):
        insert = insert_into(session, CacheUse).values(kind=kind, hits=hits, misses=misses)
        sums = {"hits": CacheUse.hits + insert.excluded.hits, "misses": CacheUse.misses + insert.excluded.misses}
        session.execute(insert.on_conflict_do_update(index_elements=["kind"], set_=sums))


def clear(session: Session, project_id: str) -> int:
    """Hide all entries of a project from this transaction on; return how many there were."""
    epoch = epochs(session, [project_id])[project_id]
    conditions = CacheEntry.project_id == project_id, CacheEntry.epoch == epoch
    entries = int(session.scalar(select(func.count()).select_from(CacheEntry).where(*conditions)) or 0)
    insert = insert_into(session, CacheEpoch).values(project_id=project_id, epoch=1)
    session.execute(insert.on_conflict_do_update(index_elements=["project_id"], set_={"epoch": CacheEpoch.epoch + 1}))
    return entries


def remove_expired(session: Session, at: float, limit: int) -> int:
    late = select(CacheEntry.key).where(CacheEntry.expires_at <= at).order_by(CacheEntry.expires_at).limit(limit)
    return len(_delete(session, late))


def remove_cleared(session: Session, limit: int) -> Mapping[str, int]:
    """Remove entries that a clearing has hidden; return their number by project."""
    counts: dict[str, int] = {}
    for cleared in session.scalars(select(CacheEpoch)).all():  # one by one: a join would read the whole cache
        old = CacheEntry.project_id == cleared.project_id, CacheEntry.epoch < cleared.epoch
        _remove(session, old, cleared.project_id, counts, limit)
    return counts


def remove_deleted(session: Session, limit: int) -> Mapping[tuple[str, str], int]:
    """Remove entries of jobs whose input or output file is deleted; return their number by file and project."""
    counts: dict[tuple[str, str], int] = {}
    for column in _FILES:
        owned = (
            select(Job.id, File.id, File.project_id)
            .join_from(File, Job, column == File.id)
            .where(File.deleted_at > 0, exists().where(CacheEntry.job_id == Job.id))  # > 0, so that its index is used
            .limit(limit)
        )
        for job_id, file_id, project_id in session.execute(owned).all():
            _remove(session, [CacheEntry.job_id == job_id], (file_id, project_id), counts, limit)
    return counts


def has_no_entry() -> Sequence[ColumnElement[bool]]:
    """Return whether the cache has no entry of a job that read or wrote this file."""
    return [~exists().where(column == File.id, CacheEntry.job_id == Job.id) for column in _FILES]


def _is_not_deleted(job_id: SQLColumnExpression[str | None] = CacheEntry.job_id) -> ColumnElement[bool]:
    """Select entries of no job, or of a job whose files exist."""
    read, written = aliased(File), aliased(File)
    there = exists().where(
        Job.id == job_id,
        or_(Job.input_file_id.is_(None), _is_stored(read, Job.input_file_id)),
        or_(Job.output_file_id.is_(None), _is_stored(written, Job.output_file_id)),
    )
    return or_(job_id.is_(None), there)


def _is_stored(file: type[File], column: InstrumentedAttribute[str | None]) -> ColumnElement[bool]:
    return exists().where(file.id == column, file.deleted_at.is_(None))


def _remove(
    session: Session, which: Sequence[ColumnElement[bool]], owner: Owner, counts: dict[Owner, int], limit: int
) -> None:
    """Remove as many of these entries as the limit allows, and count them by owner."""
    room = limit - sum(counts.values())
    some = select(CacheEntry.key).where(*which).limit(room)
    if deletion := len(_delete(session, some)):
        counts[owner] = counts.get(owner, 0) + deletion


def _free(session: Session, keys: Select[bytes]) -> Sequence[bytes]:
    """Lock the rows of these keys, skip those that are locked already, and return the keys of the others.

    Waiting for a lock while holding others would risk a deadlock.
    """
    return session.scalars(keys.with_for_update(skip_locked=True)).all()


def _delete(session: Session, keys: Select[bytes]) -> Sequence[int]:
    """Remove the entries that are not locked; return the bytes of each."""
    deletion = delete(CacheEntry).where(CacheEntry.key.in_(_free(session, keys))).returning(CacheEntry.size)
    return session.scalars(deletion, execution_options=UNSEEN).all()
