"""Run by Alembic: every missing revision in one transaction, one process at a time.

    SQLite       the exclusive `flock` of the writers, then BEGIN IMMEDIATE
    PostgreSQL   an advisory lock that ends with the transaction; then a limit on every wait and statement

A killed upgrade therefore leaves the schema as it was, and a second one waits, finds nothing to do and says so.
History only goes forward: what goes back is a backup.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import context
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url, text

from jobs.db.engine import tell_no_row
from jobs.settings import settings
from jobs.tables import Base

_LOCK = 0x6E6D_0000  # any number that is ours; the dispatcher's is the next one
_LOCK_WAIT = "10s"  # for a table that others use: give up rather than make the whole system wait behind us
_STATEMENT = "15min"  # building an index over a big table takes its time


def run() -> None:
    url: str = context.config.attributes.get("url") or settings().database
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    sqlite = engine.dialect.name == "sqlite"
    if sqlite:
        _begin_at_once(engine)
    else:
        event.listen(engine, "handle_error", tell_no_row)
    with _writer_lock(url if sqlite else None), engine.begin() as connection:
        if not sqlite:
            _alone(connection)
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=sqlite)
        context.run_migrations()


def _begin_at_once(engine: Engine) -> None:
    """Begin transactions by hand: SQLite's driver begins none for DDL, and an upgrade is to be one transaction."""

    @event.listens_for(engine, "connect")
    def _manual(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _immediate(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _writer_lock(url: str | None) -> Iterator[None]:
    """Hold the lock of all writers of a SQLite database, see `jobs.db.writer_lock`."""
    if url is None:
        yield
        return
    with Path(f"{make_url(url).database}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _alone(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'"))
    connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT}'"))


run()
