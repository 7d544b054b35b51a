"""The database: transactions, what is busy and what is wrong, answers that got lost, servers that die."""

import fcntl
import gc
import logging
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, TookTooLong
from jobs.fleet.tables import Meta
from jobs.logs import JsonFormatter
from jobs.security.tables import Project
from jobs.timings import Timings
from tests.support.recorder import add_one, lock_file_of, note, notes, opened, write_many
from tests.support.sample_jobs import LosesAnswers
from tests.support.services import Postgres
from tests.support.system import eventually

pytestmark = pytest.mark.dialects

# ── transactions ──


def test_written_row_is_visible_after_transaction(db: Database) -> None:
    note(db, "a")

    assert notes(db) == {"a": "1"}


def test_a_transaction_that_raises_keeps_nothing(db: Database) -> None:
    def half() -> None:
        with db.write() as session:
            session.add(Meta(key="a", value="1"))
            session.flush()
            raise KeyError("half way")

    with pytest.raises(KeyError):
        half()

    assert notes(db) == {}


def test_nothing_is_written_or_locked_in_a_read(db: Database) -> None:
    with db.read() as session:
        session.add(Meta(key="a", value="1"))
        assert session.scalars(select(Meta.key)).all() == []
        with pytest.raises(RuntimeError):
            session.flush()
    for statement in (insert(Meta).values(key="b", value="1"), select(Meta).with_for_update()):
        with db.read() as session, pytest.raises(RuntimeError):
            session.execute(statement)

    assert notes(db) == {}


@pytest.mark.postgres
def test_a_look_holds_no_transaction_open(postgres: Database) -> None:
    with postgres.read() as session:
        session.scalar(text("SELECT 1"))
        with postgres.read() as other:
            busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
            assert other.scalar(text(busy)) == 0


@pytest.mark.postgres
@pytest.mark.parametrize("fresh", [0.0, 60.0])
def test_terminated_connection_fails_at_most_once(postgres_url: str, fresh: float) -> None:
    timings = replace(Timings(), connection_fresh=fresh)
    db, other = Database(postgres_url, pool_size=1, timings=timings), Database(postgres_url)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid"

    def look() -> int:
        with db.read() as session:
            return int(session.scalar(text("SELECT pg_backend_pid()")) or 0)

    first = look()
    with other.read() as session:
        session.execute(text(cut), {"pid": first})
        gone = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        eventually(lambda: session.scalar(gone, {"pid": first}) == 0, 10, "it is cut")
    if fresh:
        with pytest.raises(DatabaseBusy):
            look()
    second = look()

    assert second not in {0, first}
    db.close()
    other.close()


@pytest.mark.postgres
def test_a_server_that_takes_reads_only_may_take_writes_later(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as db:
        event.listen(db.engine, "begin", lambda connection: connection.exec_driver_sql("SET TRANSACTION READ ONLY"))
        with pytest.raises(DatabaseBusy), db.write() as session:
            session.add(Meta(key="a", value="1"))


@pytest.mark.postgres
def test_a_process_has_no_more_connections_than_it_may(postgres_url: str) -> None:
    with closing(Database(postgres_url, patience=10, max_connections=2)) as db, ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(lambda _: _slow_look(db), range(16)))

    assert len(seen) == 2


def _slow_look(db: Database) -> int:
    with db.read() as session:
        return int(session.scalar(text("SELECT pg_backend_pid() FROM pg_sleep(0.1)")) or 0)


def test_rows_can_be_used_after_their_transaction(db: Database) -> None:
    note(db, "a", "blue")
    with db.read() as session:
        meta = session.get_one(Meta, "a")

    assert meta.value == "blue"


def test_many_threads_lose_no_write(db: Database) -> None:
    note(db, "n", "0")

    def write(_: int) -> None:
        with db.write() as session:
            add_one(session)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))

    assert notes(db) == {"n": "40"}


def test_many_processes_lose_no_write(database_url: str) -> None:
    with opened(database_url) as db:
        note(db, "n", "0")
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(database_url, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with opened(database_url) as db:
        assert notes(db) == {"n": "60"}


def test_connections_of_closed_database_are_closed_after_use(database_url: str) -> None:
    db = Database(database_url, patience=0.3)
    there = list[Any]()
    event.listen(db.engine, "connect", lambda connection, _: there.append(connection))
    event.listen(db.engine, "close", lambda connection, _: there.remove(connection))

    with db.read() as session:
        session.execute(select(1))
        db.close()
        had = len(there)
    with db.read() as session:  # by somebody who has not heard of it
        session.execute(select(1))

    assert had == 1
    assert there == []


# ── busy ──


def test_readers_do_not_wait_for_a_writer(db: Database) -> None:
    with db.write() as session:
        session.add(Meta(key="a", value="1"))
        session.flush()

        assert notes(db) == {}


def test_a_database_that_can_not_be_reached_is_busy(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/no/such/folder.db") as db, pytest.raises(DatabaseBusy):
        notes(db)
    with opened(f"postgresql://nobody@/none?host={tmp_path}") as db, pytest.raises(DatabaseBusy):
        notes(db)


def test_a_wrong_statement_is_an_error_and_not_busy(db: Database) -> None:
    with pytest.raises(DBAPIError, match="no_such_table"), db.read() as session:
        session.execute(text("SELECT * FROM no_such_table"))


def test_a_broken_rule_is_an_error_and_not_busy(db: Database) -> None:
    with db.write() as session:
        session.add(Project(id="1", name="same", created_at=1.0))

    with pytest.raises(IntegrityError), db.write() as session:
        session.add(Project(id="2", name="same", created_at=1.0))


@pytest.mark.parametrize("name", ["whsec_c2VjcmV0", None])
def test_an_error_of_the_database_tells_no_values(db: Database, name: str | None) -> None:
    with db.write() as session:
        session.add(Project(id="1", name="whsec_c2VjcmV0", created_at=1.0))
    row = {"id": "whsec_c2VjcmV0-2", "name": name, "created_at": 1.0}

    with pytest.raises(IntegrityError) as raised, db.write() as session:
        session.execute(insert(Project), [row])
    error = (type(raised.value), raised.value, raised.value.__traceback__)
    written = JsonFormatter().format(logging.LogRecord("api", logging.ERROR, "f", 1, "request_crashed", (), error))

    assert "INSERT INTO project" in written
    assert "constraint" in written
    assert "whsec" not in written


def test_a_pool_without_a_free_connection_is_busy(database_url: str) -> None:
    db = Database(database_url, patience=0.1, pool_size=1)
    db.engine.pool._max_overflow = 0  # type: ignore[attr-defined]
    db.engine.pool._timeout = 0.1  # type: ignore[attr-defined]

    with db.read() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(DatabaseBusy):
            notes(db)
    db.close()


# ── again and again ──


def test_work_is_retried_until_the_database_is_free(sqlite_url: str) -> None:
    writer_lock = lock_file_of(sqlite_url)
    with opened(sqlite_url, patience=0.05) as db, writer_lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.4, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()

        db.retrying(add_one)

        release.join()
        assert notes(db) == {"n": "1"}


def test_retrying_ends_once_stop_is_set(sqlite_url: str) -> None:
    writer_lock = lock_file_of(sqlite_url)
    stop = threading.Event()
    stop.set()
    with opened(sqlite_url, patience=0.01) as db, writer_lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        with pytest.raises(DatabaseBusy):
            db.retrying(add_one, stop)


def test_work_with_lost_commit_answer_is_repeated(database_url: str) -> None:
    db = LosesAnswers(database_url)
    db.lose_next = True

    db.retrying(add_one)

    assert notes(db) == {"n": "2"}  # which is why all such work is guarded
    db.close()


def test_retrying_returns_result_of_work(db: Database) -> None:
    assert db.retrying(lambda session: session.scalar(text("SELECT 7"))) == 7


# ── manners ──


class Waits(threading.Event):
    """An event that records how long each caller would wait, and lets nobody wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return self.is_set()


def test_a_loop_of_writes_breathes_for_as_long_as_it_wrote(sqlite: Database) -> None:
    waits = Waits()
    with sqlite.write() as session:
        session.execute(text("SELECT 1"))
        threading.Event().wait(0.2)

    sqlite.breathe(waits)

    [seconds] = waits.seconds
    assert seconds is not None
    assert 0.2 <= seconds <= 1


@pytest.mark.postgres
def test_breathe_does_not_wait_on_postgresql(postgres: Database) -> None:
    waits = Waits()
    with postgres.write():
        threading.Event().wait(0.2)

    postgres.breathe(waits)

    assert waits.seconds == []


def test_sqlite_is_durable_and_does_not_block_readers(sqlite: Database) -> None:
    with sqlite.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2


@pytest.mark.postgres
def test_statement_timeout_raises_took_too_long(postgres: Database) -> None:
    def sleep() -> None:
        with postgres.write() as session:
            session.execute(text("SET LOCAL statement_timeout = 20"))
            session.execute(text("SELECT pg_sleep(10)"))

    with pytest.raises(TookTooLong):
        sleep()


@pytest.mark.postgres
def test_no_statement_of_postgresql_waits_for_ever(postgres: Database) -> None:
    with postgres.read() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "30s"
        assert session.scalar(text("SHOW lock_timeout")) == "10s"


# ── a server that dies ──


@pytest.fixture(scope="module")
def mortal() -> Iterator[Postgres]:
    """Yield a server that the test may kill."""
    server = Postgres()
    yield server
    server.close()


@pytest.mark.postgres
@pytest.mark.verify
def test_killed_server_is_busy_and_sessions_work_after_restart(postgres_server: Postgres, mortal: Postgres) -> None:
    with mortal.database() as url, opened(url) as db:
        note(db, "before")
        mortal.kill()
        with pytest.raises(DatabaseBusy):
            note(db, "during")
        with pytest.raises(DatabaseBusy):
            notes(db)
        mortal.start()

        db.retrying(lambda session: session.merge(Meta(key="after", value="1")))

        assert set(notes(db)) == {"before", "after"}


@pytest.mark.postgres
def test_a_server_killed_inside_a_transaction_keeps_nothing_of_it(postgres_server: Postgres, mortal: Postgres) -> None:
    def interrupted(db: Database) -> None:
        with db.write() as session:
            session.add(Meta(key="half", value="1"))
            session.flush()
            mortal.kill()

    with mortal.database() as url, opened(url) as db:
        with pytest.raises(DatabaseBusy):
            interrupted(db)
        mortal.start()

        assert db.retrying(lambda session: session.get(Meta, "half")) is None


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a connect that was cut short
@pytest.mark.verify
def test_work_goes_on_over_a_restart_and_counts_once(postgres_server: Postgres, mortal: Postgres) -> None:
    with mortal.database() as url, opened(url) as db:
        done = threading.Event()

        def restart() -> None:
            mortal.kill()
            mortal.start()
            done.set()

        restarting = threading.Thread(target=restart)
        restarting.start()
        count = 0
        while not done.is_set() or count < 20:
            db.retrying(lambda session, key=f"k{count}": session.merge(Meta(key=key, value="1")))  # type: ignore[misc]
            count += 1
        restarting.join()

        assert len(notes(db)) == count
    gc.collect()


def test_errors_of_use_are_not_hidden(db: Database) -> None:
    with pytest.raises(InvalidRequestError), db.read() as session:
        session.refresh(Meta(key="never added", value="1"))


def test_an_operational_error_without_a_code_is_busy(db: Database) -> None:
    with pytest.raises(DatabaseBusy), db.read():
        raise OperationalError("SELECT 1", {}, Exception("the server closed the connection"))
