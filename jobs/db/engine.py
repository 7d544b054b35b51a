"""The database: short transactions, and a fair lock of the writers on SQLite.

    with db.write() as session:      # BEGIN IMMEDIATE under the writer lock; commits at exit
    with db.read() as session:       # nothing is written in it; never held across an await or a network call

A loop of writes calls `db.breathe()` after each, which on SQLite sleeps for as long as that transaction took: see
`jobs.db.writer_lock`.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Executable, create_engine, event
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection, CursorResult, Dialect, Engine, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from jobs.db.writer_lock import WriterLock
from jobs.errors import DatabaseBusy, NightmillError, TookTooLong
from jobs.platform import failures
from jobs.timings import Timings

T = TypeVar("T")

#: Rows a write transaction touches at most, so that the others wait milliseconds.
WRITE_ROWS = 200

#: In the `info` of a session that writes to this database: libraries have sessions of their own.
OWN = "own"
_USED = "used"
_CANCELLED = "57014"  # PostgreSQL's code for a statement that its time has ended
#: Its codes for a server that takes reads only (a standby, or a disk that is nearly full), and for having been idle too
#: long amid a transaction. The driver calls them internal errors.
_AWAY = frozenset({"25006", "25P03"})
_LOCKED = frozenset({5, 6})  # SQLite's busy and locked
#: SQLite's result codes of what is temporary: busy, locked, interrupted, I/O error, disk full, can't open.
_PASSING = frozenset({5, 6, 9, 10, 13, 14})


class Database:
    """Sessions of one database for one process.

    `patience` is how long, in seconds, a transaction waits for its turn before `DatabaseBusy`. The transactions of an
    `urgent` process precede those of others. `most` bounds the connections to PostgreSQL: a transaction that finds none
    free waits for one.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = 1.5,
        pool_size: int = 10,
        max_connections: int = 20,
        urgent: bool = False,
        timings: Timings = Timings(),
    ) -> None:
        self.url = url
        self.sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = _engine(url, self.sqlite, patience, pool_size, max_connections, timings)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False, info={OWN: True})
        # PostgreSQL has a snapshot per statement anyway; BEGIN and ROLLBACK are two more trips for each read
        looks = self.engine.execution_options(**({} if self.sqlite else {"isolation_level": "AUTOCOMMIT"}))
        event.listen(looks, "before_execute", _refuse_to_change)
        self._looks = sessionmaker(looks, expire_on_commit=False, autoflush=False)
        self._writer_lock = WriterLock(make_url(url).database, patience, urgent, timings) if self.sqlite else None
        self._last = threading.local()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Run one write transaction. Raises DatabaseBusy when the database is locked or unavailable."""
        with _our_errors():
            if self._writer_lock is None:
                with self._sessions.begin() as session:
                    yield session
                return
            with self._writer_lock.hold() as state:
                began = time.monotonic()
                with self._sessions() as session:
                    session.connection(execution_options={"write": True})
                    state.timed_out = state.database_locked = False
                    yield session
                    session.commit()
                self._last.took = time.monotonic() - began

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Run a transaction that writes nothing: a snapshot on SQLite, single statements on PostgreSQL."""
        with _our_errors(), self._looks() as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Run a transaction that writes nothing, all of whose statements see the database at one moment."""
        with self.read() as session:
            if not self.sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    def breathe(self, stop: threading.Event | None = None) -> None:
        """Let others write: sleep as long as this thread's last write took (SQLite only)."""
        took = getattr(self._last, "took", 0.0)
        if self.sqlite and took:
            (stop or threading.Event()).wait(min(took, 1.0))

    def retrying(self, work: Callable[[Session], T], stop: threading.Event | None = None) -> T:
        """Run `work` in a write transaction, again and again while the database is busy.

        The commit's answer may be lost, so `work` must be guarded: run twice, it changes nothing twice.
        Raises DatabaseBusy only once `stop` is set.
        """
        stop = stop or threading.Event()
        delay = 0.05
        while True:
            try:
                with self.write() as session:
                    return work(session)
            except DatabaseBusy:
                if stop.wait(delay):
                    raise
                delay = min(delay * 2, 2.0)

    def close(self) -> None:
        """Close all connections; one that another thread still uses is closed when it is returned."""
        event.listen(self.engine, "checkin", _forget)
        self.engine.dispose()
        if self._writer_lock is not None:
            self._writer_lock.close()


def _forget(_: Any, record: ConnectionPoolEntry) -> None:
    record.invalidate()


#: Of an UPDATE or DELETE: leave the session's objects alone, they are not used afterwards.
UNSEEN: Mapping[str, Any] = {"synchronize_session": False}
#: Of an UPDATE ... RETURNING rows: they are now as they have come back.
RETURNED: Mapping[str, Any] = {"synchronize_session": False, "populate_existing": True}


def execute_and_count(session: Session, statement: Executable, execution_options: Mapping[str, Any] = {}) -> int:
    """Execute an INSERT, UPDATE or DELETE, and return the number of rows that it added, changed or removed."""
    result = session.execute(statement, execution_options=execution_options)
    return cast("CursorResult[Any]", result).rowcount


def flush_unique(session: Session, refusal: NightmillError) -> None:
    """Write what is pending. Raises `refusal`, where a unique index has the value already: the transaction is over."""
    try:
        session.flush()
    except IntegrityError as error:
        raise refusal from error


def page_ids(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield the ids in order, as many at a time as a statement takes."""
    ordered = sorted(ids)
    return (ordered[start : start + WRITE_ROWS] for start in range(0, len(ordered), WRITE_ROWS))


def insert_into(session: Session, model: type[DeclarativeBase]) -> Any:
    """Return an INSERT that has ON CONFLICT; both databases spell it alike, SQLAlchemy has one class for each."""
    return inserting(session.get_bind().dialect.name)(model)


def inserting(dialect: str) -> Any:
    """Return the function for such an INSERT, for statements that are built once for each database."""
    return sqlite_insert if dialect == "sqlite" else pg_insert


def _engine(url: str, sqlite: bool, patience: float, pool_size: int, max_connections: int, timings: Timings) -> Engine:
    if not sqlite:
        from jobs.db.watchdog import TCP, ServerProbe

        made = create_engine(
            url,
            pool_size=min(pool_size, max_connections),
            max_overflow=max(0, max_connections - pool_size),
            pool_timeout=max(patience, 2.0),
            connect_args={"connect_timeout": 2, **TCP},
            hide_parameters=True,
        )
        event.listen(made, "handle_error", tell_no_row)
        event.listen(made, "do_connect", ServerProbe(patience, timings.connection_lost).connect)
        event.listen(made, "checkout", partial(_ping, made.dialect, timings.connection_fresh))
        event.listen(made, "checkin", _note_use)
        return made
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=40,
        pool_timeout=max(patience, 2.0),
        connect_args={"timeout": patience, "isolation_level": None, "check_same_thread": False},
        hide_parameters=True,
    )
    event.listen(engine, "connect", lambda connection, _record: _pragmas(connection, patience))
    event.listen(engine, "begin", _begin)
    return engine


def _refuse_to_change(_: Connection, clause: Any, *__: Any) -> None:
    if getattr(clause, "is_dml", False) or getattr(clause, "_for_update_arg", None) is not None:
        raise RuntimeError("Nothing is written, or locked, in a read.")


def _ping(dialect: Dialect, fresh: float, connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """Ping a connection that was idle for a while: it may have been lost.

    Raises InvalidatePoolError: SQLAlchemy opens another one.
    """
    used = record.info.get(_USED)
    if used is None or time.monotonic() - used < fresh:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _note_use(_: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED] = time.monotonic()


def tell_no_row(context: ExceptionContext) -> None:
    """Remove the row from an error of PostgreSQL: errors are logged, and no value of a row may be."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = tuple(text.partition("\nDETAIL:")[0] if isinstance(text, str) else text for text in error.args)


def _pragmas(connection: Any, patience: float) -> None:
    _to_wal(connection, time.monotonic() + patience)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


def _to_wal(connection: Any, deadline: float) -> None:
    """Turn a new database to WAL, with attempts until `deadline`: SQLite's busy timeout does not cover that."""
    pause = threading.Event()
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _LOCKED or time.monotonic() > deadline:
                raise
            pause.wait(0.01)


def _begin(connection: Connection) -> None:
    """Begin a write transaction with its lock: a deferred one gets SQLITE_BUSY in spite of the timeout."""
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except DatabaseBusy:
        failures.count(failures.DATABASE, "writer_lock")
        raise
    except PoolTimeout as error:
        failures.count(failures.DATABASE, "no_connection")
        raise DatabaseBusy from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _CANCELLED:
            failures.count(failures.DATABASE, "statement_timeout")
            raise TookTooLong from error
        if _passes(error):
            failures.count(failures.DATABASE, "unavailable")
            raise DatabaseBusy from error
        raise


def _passes(error: DBAPIError) -> bool:
    """Return whether the same statement may work later. SQLite calls a wrong statement operational, too."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _PASSING
    unavailable = getattr(error.orig, "sqlstate", None) in _AWAY
    return unavailable or error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))
