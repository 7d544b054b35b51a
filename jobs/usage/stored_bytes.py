"""The bytes that each project stores, and their limit (`NIGHTMILL_PROJECT_MAX_BYTES`).

    create   check ─▶ bytes into the storage ─▶ reserve, in the transaction of the row that points to them
    delete   changes nothing here; the next count finds less

A project uses `counted + added`. A create raises `added`, which never decreases, by one conditional UPDATE, so that
concurrent creates never exceed the limit together. A count reads `added` before it sums the rows of the project: bytes
that are added meanwhile count twice until the next count, and none are missed. What workers store (results, vectors,
background responses) is never refused, and the next count includes it.

A count of a million rows takes 0.1 s of CPU, from indexes alone. Without a limit nothing is counted or recorded.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, Database, execute_and_count, insert_into
from jobs.errors import ProjectFull
from jobs.files.tables import File, Upload, UploadPart
from jobs.inference.tables import Conversation, StoredCompletion
from jobs.ledger import kinds
from jobs.prompts.tables import PromptVersion
from jobs.retrieval.tables import VectorStoreFile
from jobs.security.tables import StorageUsage
from jobs.usage.tables import StoredBytesDay

#: A count is repeated after `_COUNT_SECONDS`; before a create is refused, after `_FULL_SECONDS`.
_COUNT_SECONDS, _FULL_SECONDS = 30.0, 5.0
_DAY = 86_400
_counting = threading.Lock()  # one count at a time in this process

#: The sums of what no kind of job stores, as `Kind.stored_bytes` has the others. Parts come before files, so that an
#: upload completed between the two sums is in one or in both.
_SUMS: Mapping[str, Any] = {
    "upload_parts": select(Upload.project_id, func.sum(UploadPart.bytes))
    .join(UploadPart, UploadPart.upload_id == Upload.id)
    .where(Upload.status == "pending")
    .group_by(Upload.project_id),
    "files": select(File.project_id, func.sum(File.bytes)).group_by(File.project_id),
    "chat_completions": select(StoredCompletion.project_id, func.sum(StoredCompletion.bytes)).group_by(
        StoredCompletion.project_id
    ),
    "conversations": select(Conversation.project_id, func.sum(Conversation.bytes)).group_by(Conversation.project_id),
    "prompts": select(PromptVersion.project_id, func.sum(PromptVersion.bytes)).group_by(PromptVersion.project_id),
}


def sums() -> dict[str, Any]:
    """Return the statements of the sums by project, by what is stored."""
    statements = dict(_SUMS)
    for row in kinds.rows().values():
        statements.update(row.stored_bytes)
    return statements


def bytes_by_project(session: Session) -> dict[str, dict[str, int]]:
    """Return the stored bytes of every project that stores any, by what is stored."""
    statements = sums()
    sizes: dict[str, dict[str, int]] = {}
    for name, statement in statements.items():
        for project_id, size in session.execute(statement):
            sizes.setdefault(project_id, dict.fromkeys(statements, 0))[name] = int(size or 0)
    return sizes


def sample_day(session: Session) -> None:
    """Note the bytes of the vector stores of each project, once on each day in UTC."""
    day = int(now()) // _DAY * _DAY
    if session.scalar(select(StoredBytesDay.day).where(StoredBytesDay.day == day).limit(1)) is not None:
        return
    bytes_of = func.coalesce(func.sum(VectorStoreFile.usage_bytes), 0)
    sums = select(VectorStoreFile.project_id, bytes_of).group_by(VectorStoreFile.project_id)
    for project_id, size in session.execute(sums).all():
        new = insert_into(session, StoredBytesDay).values(day=day, project_id=project_id, bytes=int(size))
        session.execute(new.on_conflict_do_nothing())


def check(db: Database, project_id: str, size: int, limit: int) -> int:
    """Return how many bytes a project may store after `size` more; a `limit` of 0 is none.

    Raises: ProjectFull.
    """
    if not limit or size <= 0:
        return limit
    free = limit - _read_or_count(db, project_id, size, limit) - size
    if free < 0:
        raise _full(limit)
    return free


def reserve(session: Session, project_id: str, size: int, limit: int) -> None:
    """Add `size` bytes to a project that was checked before.

    Raises: ProjectFull.
    """
    fits = StorageUsage.counted + StorageUsage.added + size <= limit
    more = update(StorageUsage).where(StorageUsage.project_id == project_id, fits)
    more = more.values(added=StorageUsage.added + size)
    if limit and size > 0 and execute_and_count(session, more, UNSEEN) != 1:
        raise _full(limit)


def check_not_full(session: Session, project_id: str, limit: int) -> None:
    """Refuse one more byte by the recorded sums, in a transaction that creates work whose results workers will store.

    Nothing is counted in the transaction: call `count_if_due` before it.

    Raises: ProjectFull.
    """
    if not limit:
        return
    noted = select(StorageUsage.counted + StorageUsage.added).where(StorageUsage.project_id == project_id)
    if (session.scalar(noted) or 0) >= limit:
        raise _full(limit)


def count_if_due(db: Database, project_id: str, limit: int) -> None:
    """Count what a project stores if the last count is too old to decide about one more byte."""
    if limit:
        _read_or_count(db, project_id, 1, limit)


def count(db: Database, project_id: str) -> int:
    """Count what a project stores, record it and return it."""
    with db.read() as session:
        added, used = _sum_all(session, project_id)
    with db.write() as session:
        _note(session, project_id, used - added)
    return used


def _sum_all(session: Session, project_id: str) -> tuple[int, int]:
    """Return `added` as it was before the sums, and the sum."""
    added = session.scalar(select(StorageUsage.added).where(StorageUsage.project_id == project_id)) or 0
    return added, sum(_sum(session, statement, project_id) for statement in sums().values())


def _sum(session: Session, statement: Any, project_id: str) -> int:
    row = session.execute(statement.where(statement.selected_columns[0] == project_id)).first()
    return int(row[1] or 0) if row else 0


def _note(session: Session, project_id: str, counted: int) -> None:
    values = {"counted": counted, "counted_at": now()}
    insert = insert_into(session, StorageUsage).values(project_id=project_id, added=0, **values)
    session.execute(insert.on_conflict_do_update(index_elements=["project_id"], set_=values))


def _read_or_count(db: Database, project_id: str, size: int, limit: int) -> int:
    with db.read() as session:
        used = _recorded_sum(session, project_id, size, limit)
    if used is not None:
        return used
    with _counting:
        with db.read() as session:
            used = _recorded_sum(session, project_id, size, limit)  # another thread may have counted
        return count(db, project_id) if used is None else used


def _recorded_sum(session: Session, project_id: str, size: int, limit: int) -> int | None:
    """Return the recorded sum, or None if a count is due."""
    row = session.execute(
        select(StorageUsage.counted + StorageUsage.added, StorageUsage.counted_at).where(
            StorageUsage.project_id == project_id
        )
    ).first()
    if row is None:
        return None
    used, counted_at = row
    fresh = _COUNT_SECONDS if used + size <= limit else _FULL_SECONDS
    return int(used) if abs(now() - counted_at) < fresh else None


def _full(limit: int) -> ProjectFull:
    return ProjectFull(
        f"The project may store {limit} bytes, and this would be more. Delete what is not needed any more: "
        "its space can be used again within about a minute."
    )


class Arriving:
    """Bytes of bodies that this process is receiving, by project."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = Counter[str]()

    @contextmanager
    def hold(self, project_id: str, size: int, free: int) -> Iterator[None]:
        """Count `size` bytes as arriving.

        Raises: ProjectFull, if other bodies leave less of `free`.
        """
        with self._lock:
            if self._bytes[project_id] + size > free:
                raise ProjectFull("What the project stores and is uploading would be more than it may store.")
            self._bytes[project_id] += size
        try:
            yield
        finally:
            with self._lock:
                self._bytes[project_id] -= size
                self._bytes += Counter()  # drops projects without any
