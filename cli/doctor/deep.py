"""Check what takes minutes: the content of the database, and the stored objects that its rows name."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Select, desc, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from cli.doctor.findings import Finding, Patient, broken, fine, warning
from cli.doctor.stored import read_database
from jobs.db.engine import WRITE_ROWS, Database
from jobs.errors import NightmillError, NotFound
from jobs.files.tables import File, UploadPart
from jobs.ledger.tables import Segment
from jobs.platform.storage import Storage, open_storage

_PROBLEMS = 5  # that are shown
#: Rows of each table whose objects are looked for, the newest. A bucket takes some milliseconds for each.
_ROWS = 10_000
_RESTORE = "keep it aside, and restore a backup: docs/operate/backup.md"


def database_content(patient: Patient) -> Iterator[Finding]:
    """Read the whole database: SQLite's `integrity_check`, or the checks that PostgreSQL has."""
    url = make_url(patient.config.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return
    db = Database(patient.config.database, patience=3)
    try:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield from _sqlite(connection) if db.sqlite else _postgresql(connection)
    except SQLAlchemyError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        yield broken("database content", f"it cannot be read: {reason}", _RESTORE)
    finally:
        db.close()


def _sqlite(connection: Connection) -> Iterator[Finding]:
    lines = connection.scalars(text(f"PRAGMA integrity_check({_PROBLEMS})")).all()
    if lines == ["ok"]:
        yield fine("database content", "integrity_check finds nothing")
    else:
        yield broken("database content", "\n".join(lines), _RESTORE)


#: Indexes whose creation was cut off; and the pages that did not match their checksum, null where there are none.
_INVALID = text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
_CHECKSUMS = text("SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()")
_AMCHECK = text("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'")
_BTREES = text("""
    SELECT c.oid, c.relname
    FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'i' AND a.amname = 'btree' AND n.nspname = current_schema() ORDER BY c.relname
""")


def _postgresql(connection: Connection) -> Iterator[Finding]:
    """Check what the server knows of damage and, where the extension amcheck is installed, all indexes.

    Source: postgresql.org/docs/current/amcheck.html
    """
    failures = connection.scalar(_CHECKSUMS)
    problems = [f"{failures} pages did not match their checksum"] if failures else []
    problems += [f"the index {name} is not valid: REINDEX INDEX {name}" for name in connection.scalars(_INVALID)]
    checks_indexes = bool(connection.scalar(_AMCHECK))
    if checks_indexes:
        for oid, name in connection.execute(_BTREES).all():
            try:
                connection.execute(text("SELECT bt_index_check(CAST(:oid AS oid))"), {"oid": oid})
            except DBAPIError as error:
                problems.append(f"the index {name}: {str(error.orig).strip().splitlines()[0]}")
    if problems:
        yield broken(
            "database content", "\n".join(problems[:_PROBLEMS]), "look into the server's log; restore a backup"
        )
    elif checks_indexes:
        yield fine("database content", "no damage is known, and all indexes match their tables")
    else:
        yield warning("database content", "no damage is known; indexes were not checked", "CREATE EXTENSION amcheck")


#: By what they are: the objects that rows name, as the query of their paths and sizes, newest first.
_STORED: dict[str, Select[str, int]] = {
    "files": select(File.path, File.bytes).where(File.deleted_at.is_(None)).order_by(desc(File.created_at)),
    "segments": select(Segment.path, Segment.length).order_by(desc(Segment.created_at)),
    "parts of uploads": select(UploadPart.path, UploadPart.bytes).order_by(desc(UploadPart.created_at)),
}


def stored_objects(patient: Patient) -> Iterator[Finding]:
    """Look for the objects of the newest rows, and compare their sizes. What is deleted meanwhile is not missing."""
    try:
        storage = open_storage(patient.config.storage)
        for name, query in _STORED.items():
            rows = read_database(patient, partial(_rows, query=query.limit(_ROWS))) or []
            wrong = [path for path, size in rows if _size(storage, path) != size][:WRITE_ROWS]
            still_named = query.where(query.selected_columns[0].in_(wrong))
            left = read_database(patient, partial(_rows, query=still_named)) if wrong else []
            yield _judge(name, len(rows), [path for path, _ in left or ()])
    except (NightmillError, OSError, ValueError) as error:
        yield broken("stored objects", f"{patient.config.storage}: {error}", "correct NIGHTMILL_STORAGE_URL")


def _rows(session: Session, query: Select[str, int]) -> list[tuple[str, int]]:
    return [(path, size) for path, size in session.execute(query)]


def _judge(name: str, looked: int, wrong: list[str]) -> Finding:
    if not wrong:
        return fine(f"stored {name}", f"{looked} are there")
    shown = ", ".join(wrong[:_PROBLEMS])
    message = f"{len(wrong)} of {looked} are missing or have another size: {shown}"
    return broken(
        f"stored {name}", message, "copy them from a backup, see docs/operate/backup.md, or delete their rows"
    )


def _size(storage: Storage, path: str) -> int | None:
    try:
        return storage.size(path)
    except NotFound:
        return None
