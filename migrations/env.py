"""Run by Alembic: every missing revision in one transaction, one process at a time.

    SQLite       the exclusive `flock` of the writers, then BEGIN IMMEDIATE
    PostgreSQL   an advisory lock of a transaction beside it; then a limit on every wait and statement

A killed upgrade therefore leaves the schema as it was, and a second one waits, finds nothing to do and says so. On
PostgreSQL a revision that builds an index with `migrations.locks.create_index` commits what came before it: after a
kill the schema is that of the revision before. History only goes forward: what goes back is a backup.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import context
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url

from jobs.db.engine import tell_no_row
from jobs.settings import settings
from jobs.tables import Base
from migrations.locks import limit, take_turn


def run() -> None:
    url: str = context.config.attributes.get("url") or settings().database
    sqlite = make_url(url).get_backend_name() == "sqlite"
    nothing_prepared = {} if sqlite else {"prepare_threshold": None}  # what a pooler may keep for its next client
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=nothing_prepared)
    if sqlite:
        _begin_at_once(engine)
        with _writer_lock(url), engine.begin() as connection:
            context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
            context.run_migrations()
        return
    event.listen(engine, "handle_error", tell_no_row)
    with engine.connect() as turn, engine.connect() as connection:
        take_turn(turn)
        context.configure(connection=connection, target_metadata=Base.metadata)
        with context.begin_transaction():
            limit(connection)
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
def _writer_lock(url: str) -> Iterator[None]:
    """Hold the lock of all writers of a SQLite database, see `jobs.db.writer_lock`."""
    with Path(f"{make_url(url).database}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


run()
