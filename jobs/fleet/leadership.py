"""Elect one leading dispatcher: by a PostgreSQL advisory lock, or on SQLite by a `flock` beside the database.

Both locks end with the process that holds them. Between ticks the leader waits here for a write: it reads PostgreSQL's
current snapshot or SQLite's data version, so that it runs once a second in an idle system and ten times in a busy one.
NOTIFY would wake it at once, but commits with NOTIFY wait for each other: PostgreSQL orders them by a global lock.
"""

import logging
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from jobs.db.engine import Database
from jobs.platform.locks import FileLock
from jobs.settings import Settings

log = logging.getLogger(__name__)
#: The row of `meta` with the unix time of the last election.
ELECTED_AT = "dispatcher_elected_at"
_LOCK = 0x6E6D_0001  # an arbitrary number
#: Changes whenever a writing transaction begins or ends. PostgreSQL § 9.27, pg_current_snapshot.
_MOMENT = text("SELECT CAST(pg_current_snapshot() AS text)")
_TAKEN = text("""
    SELECT EXISTS (
        SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = :lock AND datname = current_database()
    )
""")


class _Seat(Protocol):
    def take(self) -> bool: ...
    def holds(self) -> bool: ...
    def changed(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; return whether something was written."""

    def drop(self) -> None: ...
    def taken(self) -> bool:
        """Return whether any process holds the lock now."""


class Leadership:
    """The lock of the leading dispatcher."""

    def __init__(self, config: Settings, db: Database) -> None:
        self._seat: _Seat = _SqliteSeat(config, db) if db.sqlite else _PostgresSeat(db)

    def take(self) -> bool:
        return self._seat.take()

    def holds(self) -> bool:
        return self._seat.holds()

    def drop(self) -> None:
        self._seat.drop()

    def taken(self) -> bool:
        """Return whether any dispatcher leads, this one or another."""
        return self._seat.taken()

    def wait(self, tick: float, idle: float, stop: threading.Event) -> None:
        """Wait for one tick, or longer while nothing changes: up to `idle` seconds."""
        until = time.monotonic() + idle
        while not stop.is_set() and time.monotonic() < until:
            if self._seat.changed(tick):
                return


class _SqliteSeat:
    def __init__(self, config: Settings, db: Database) -> None:
        database = make_url(config.database).database or str(config.data_dir / "nightmill")
        self._lock = FileLock(Path(f"{database}.dispatcher"))
        self._leads = False
        self._db = db
        self._version: int | None = None
        self._watch: Any = None
        self._pause = threading.Event()

    def take(self) -> bool:
        self._leads = self._lock.try_acquire()
        return self._leads

    def holds(self) -> bool:
        return self._leads

    def changed(self, timeout: float) -> bool:
        """Compare `PRAGMA data_version`, which changes when another connection commits, and costs microseconds."""
        self._pause.wait(timeout)
        try:
            if self._watch is None:
                self._watch = self._db.engine.raw_connection()
            version = self._watch.driver_connection.execute("PRAGMA data_version").fetchone()[0]
        except (sqlite3.Error, DBAPIError):  # the next query reports what is wrong
            self._unwatch()
            return True
        before, self._version = self._version, version
        return bool(version != before)

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def drop(self) -> None:
        self._unwatch()
        self._lock.close()
        self._leads = False

    def taken(self) -> bool:
        free = self.take()
        self.drop()
        return not free


class _PostgresSeat:
    """Hold the lock in a connection of its own, outside the pool.

    Behind a pooler that gives away the server's connection after each transaction, hold it in a transaction that stays
    open as long as this process leads. At READ COMMITTED an idle transaction keeps no row from being removed.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._connection: Any = None
        self._moment = ""
        self._pause = threading.Event()

    def take(self) -> bool:
        try:
            connection = self._db.engine.connect()
            pooled = connection.connection.driver_connection.pooled  # type: ignore[union-attr]
            level, lock = ("READ COMMITTED", "xact_lock") if pooled else ("AUTOCOMMIT", "lock")
            connection = connection.execution_options(isolation_level=level)
            if not connection.scalar(text(f"SELECT pg_try_advisory_{lock}(:lock)"), {"lock": _LOCK}):
                connection.close()
                return False
        except DBAPIError:
            log.warning("leadership_database_unavailable")
            return False
        self._connection = connection
        return True

    def holds(self) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except DBAPIError:
            self._lose()
            return False
        return True

    def changed(self, timeout: float) -> bool:
        self._pause.wait(timeout)
        try:
            moment = self._connection.scalar(_MOMENT)
        except DBAPIError:
            self._lose()
            return True
        before, self._moment = self._moment, moment
        return bool(moment != before)

    def _lose(self) -> None:
        log.warning("leadership_lost")
        self.drop()

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
        self._connection = None

    def taken(self) -> bool:
        with self._db.read() as session:
            return bool(session.scalar(_TAKEN, {"lock": _LOCK}))
