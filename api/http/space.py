"""Check the space for what a client stores: on the disk, and within its project's limit (`jobs.usage.stored_bytes`).

Bodies that this process is receiving count as stored, so that many uploads at once stay within the limit too.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.http.idempotency import Lease
from api.shares import run_in_threadpool
from jobs.errors import ProjectFull, StorageFull
from jobs.platform.storage import remove_objects
from jobs.usage import stored_bytes
from jobs.usage.project_limits import limit_of


def check_disk(call: CallContext, arriving: int) -> None:
    """Check that the disk has `min_free_bytes` after `arriving` more bytes, and can take a file at all.

    Raises: StorageFull.
    """
    free = call.storage.free()
    if free is not None and free - arriving < call.config.min_free_bytes:
        raise StorageFull


def check_project(call: CallContext, arriving: int = 1) -> int | None:
    """Return how many bytes the project may store after `arriving` more; None without a limit.

    Raises: ProjectFull.
    """
    with call.db.read() as session:
        limit = _limit(session, call)
    return stored_bytes.check(call.db, call.project_id, arriving, limit) if limit else None


def check_not_full(session: Session, call: CallContext) -> None:
    """Check the project's limit for what workers will store, in the transaction that creates it.

    It uses the sums that `count_if_due` has stored.

    Raises: ProjectFull.
    """
    stored_bytes.check_not_full(session, call.project_id, _limit(session, call))


def count_if_due(call: CallContext) -> None:
    """Count what the project stores if that is due, before the transaction in which `check_not_full` is called."""
    with call.db.read() as session:
        limit = _limit(session, call)
    stored_bytes.count_if_due(call.db, call.project_id, limit)


def check_space(call: CallContext, arriving: int) -> None:
    """Check that the disk and the project have space for `arriving` more bytes.

    Raises: StorageFull, ProjectFull.
    """
    check_disk(call, arriving)
    check_project(call, max(arriving, 1))


def _limit(session: Session, call: CallContext) -> int:
    return limit_of(session, call.config, call.project_id, "max_bytes")


@asynccontextmanager
async def receiving(call: CallContext, request: Request, lease: Lease, largest: int) -> AsyncIterator[None]:
    """Hold space for the body of `request`, unless it is a replay; a body of unknown length holds `largest` bytes.

    Raises: StorageFull, ProjectFull.
    """
    if lease.stored:
        yield
        return
    length = request.headers.get("content-length")
    await run_in_threadpool(check_disk, call, int(length or 0))
    free = await run_in_threadpool(check_project, call)
    if free is None:
        yield
        return
    size = int(length) if length is not None else largest
    with call.services.arriving.hold(call.project_id, size, free + 1):
        yield


def reserve(session: Session, call: CallContext, size: int) -> None:
    """Add `size` bytes to the project, in the transaction of the row that points to them.

    Raises: ProjectFull.
    """
    stored_bytes.reserve(session, call.project_id, size, _limit(session, call))


def reserve_or_remove(session: Session, call: CallContext, size: int, path: str, owner: ColumnElement[bool]) -> None:
    """Reserve `size` bytes for the object at `path`, or remove it.

    Raises: ProjectFull.
    """
    try:
        reserve(session, call, size)
    except ProjectFull:
        remove_orphan(session, call, path, owner)
        raise


def remove_orphan(session: Session, call: CallContext, path: str, owner: ColumnElement[bool]) -> None:
    """Remove the object at `path`, unless a row that matches `owner` exists.

    Another connection of a stream may have stored that row.
    """
    if not session.scalar(select(exists().where(owner))):
        remove_objects(call.storage, [path])
