"""Space for what a client stores: on the disk, and within its project's bound (see `jobs.usage.stored_bytes`).

Bodies that are being received count as stored, in this process: what many uploads at once write before the last of
their bytes is known stays within the bound too.
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
from jobs.platform.storage import let_go
from jobs.usage import stored_bytes


def check_disk(call: CallContext, arriving: int) -> None:
    """Raises StorageFull when the disk would have less than `min_free_bytes` after `arriving` more."""
    free = call.storage.free()
    if free is not None and free - arriving < call.config.min_free_bytes:
        raise StorageFull


def check_project(call: CallContext, arriving: int = 1) -> int:
    """Return how many bytes the project may store after `arriving` more. Raises ProjectFull."""
    return stored_bytes.check(call.db, call.project_id, arriving, call.config.project_max_bytes)


def check_not_full(session: Session, call: CallContext) -> None:
    """The same for what workers will fill, in the transaction that creates it, by what `count_if_due` has noted.

    Raises ProjectFull.
    """
    stored_bytes.check_not_full(session, call.project_id, call.config.project_max_bytes)


def count_if_due(call: CallContext) -> None:
    """Count what the project stores where that is due, before the transaction in which `check_not_full` is called."""
    stored_bytes.count_if_due(call.db, call.project_id, call.config.project_max_bytes)


def check_space(call: CallContext, arriving: int) -> None:
    """Raises StorageFull when the disk or the project has no space for `arriving` more bytes."""
    check_disk(call, arriving)
    check_project(call, max(arriving, 1))


@asynccontextmanager
async def receiving(call: CallContext, request: Request, lease: Lease, largest: int) -> AsyncIterator[None]:
    """Hold space for the body of `request`, but for a replay; one of unknown length may be as long as `largest`.

    Raises StorageFull, ProjectFull.
    """
    if lease.stored:
        yield
        return
    length = request.headers.get("content-length")
    await run_in_threadpool(check_disk, call, int(length or 0))
    if not call.config.project_max_bytes:
        yield
        return
    free = await run_in_threadpool(check_project, call)
    size = int(length) if length is not None else largest
    with call.services.arriving.hold(call.project_id, size, free + 1):
        yield


def reserve(session: Session, call: CallContext, size: int) -> None:
    """Add `size` bytes to the project, in the transaction of the row that points to them. Raises ProjectFull."""
    stored_bytes.reserve(session, call.project_id, size, call.config.project_max_bytes)


def reserve_or_remove(session: Session, call: CallContext, size: int, path: str, owner: ColumnElement[bool]) -> None:
    """Reserve `size` bytes for the object under `path`, or remove it. Raises ProjectFull."""
    try:
        reserve(session, call, size)
    except ProjectFull:
        remove_unowned(session, call, path, owner)
        raise


def remove_unowned(session: Session, call: CallContext, path: str, owner: ColumnElement[bool]) -> None:
    """Remove the object under `path`, unless an `owner` exists: another connection of a stream may have stored it."""
    if not session.scalar(select(exists().where(owner))):
        let_go(call.storage, [path])
