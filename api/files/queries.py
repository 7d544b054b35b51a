"""Queries of files that several routes use."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.errors import clip
from api.files.schemas import FileObject, show_file
from jobs.errors import DatabaseBusy, NotFound
from jobs.files import lookup
from jobs.files.tables import File
from jobs.platform.storage import remove_objects
from jobs.settings import Settings


def visible(call: CallContext) -> Select[File]:
    """Return the statement of the files that this project may see."""
    return lookup.visible(call.project_id)


def get_file(session: Session, call: CallContext, file_id: str, *, lock: bool = False) -> File:
    statement = visible(call).where(File.id == file_id)
    file = session.scalar(statement.with_for_update() if lock else statement)
    if file is None:
        raise NotFound(f"No such File object: {clip(file_id)}", param="id")
    return file


def insert(session: Session, call: CallContext, file: File) -> FileObject:
    """Insert the row of a file whose bytes are durable, and return its object."""
    session.add(file)
    call.record(session, "file.create", file.id, {"bytes": file.bytes, "sha256": file.sha256})
    return show_file(file)


@contextmanager
def remove_on_error(call: CallContext, path: str | None) -> Iterator[None]:
    """Remove the object at `path` if its row is refused.

    When the database was busy the row may be committed all the same: bytes without a row are better than the reverse.
    """
    try:
        yield
    except DatabaseBusy:
        raise
    except BaseException:  # any reason that the row was refused
        if path is not None:
            remove_objects(call.storage, [path])
        raise


def expiry(config: Settings, purpose: str, seconds: int | None, created_at: float) -> float | None:
    """Return when a file expires: after `seconds`, or after the default for batch files."""
    if seconds is None and purpose == "batch":
        seconds = config.file_expiry_batch_seconds
    return None if seconds is None else created_at + seconds
