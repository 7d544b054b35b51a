"""The database: one writer behind a gate, what is busy and what is wrong, answers that got lost, servers that die."""

import fcntl
import gc
import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError
from sqlalchemy.orm import Session

from jobs.db import Database
from jobs.errors import DatabaseBusy, TookTooLong
from jobs.logs import JsonFormatter
from jobs.models import Meta, Project
from tests.support.ledgers import LosesAnswers
from tests.support.services import Postgres
from tests.support.system import eventually, pause


def _gate(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///") + ".gate")


@contextmanager
def opened(url: str, patience: float = 0.3, *, urgent: bool = False) -> Iterator[Database]:
    database = Database(url, patience=patience, urgent=urgent)
    yield database
    database.close()


def note(db: Database, key: str, value: str = "1") -> None:
    with db.write() as session:
        session.merge(Meta(key=key, value=value))


def notes(db: Database) -> dict[str, str]:
    with db.read() as session:
        return {meta.key: meta.value for meta in session.scalars(select(Meta))}


def add_one(session: Session) -> None:
    meta = session.get(Meta, "n", with_for_update=True, populate_existing=True)
    if meta is None:
        session.add(Meta(key="n", value="1"))
    else:
        meta.value = str(int(meta.value) + 1)


# ── transactions ──


def test_what_is_written_is_there_after_the_transaction(db: Database) -> None:
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
def test_a_connection_that_was_cut_is_met_only_by_who_has_it_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, fresh: float
) -> None:
    monkeypatch.setattr("jobs.db._FRESH_SECONDS", fresh)
    db, other = Database(postgres_url, pool_size=1), Database(postgres_url)
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
def test_a_process_has_no_more_connections_than_it_may(postgres_url: str) -> None:
    with closing(Database(postgres_url, patience=10, most=2)) as db, ThreadPoolExecutor(8) as pool:
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


def _write_many(url: str, count: int) -> None:
    with opened(url, patience=30) as db:
        for _ in range(count):
            with db.write() as session:
                add_one(session)
            db.breathe()


def test_many_processes_lose_no_write(database_url: str) -> None:
    with opened(database_url) as db:
        note(db, "n", "0")
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_many, args=(database_url, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with opened(database_url) as db:
        assert notes(db) == {"n": "60"}


def test_what_a_thread_has_of_a_closed_database_is_closed_when_it_is_done_with_it(database_url: str) -> None:
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


def test_a_fork_passes_the_gate_by_a_door_of_its_own(sqlite_url: str) -> None:
    with opened(sqlite_url, patience=30) as db:
        note(db, "n", "0")
        db.engine.dispose()
        child = os.fork()
        if not child:
            db.engine.dispose(close=False)
            _write_many(sqlite_url, 10)
            os._exit(0 if notes(db) else 1)
        for _ in range(10):
            with db.write() as session:
                add_one(session)
        _, status = os.waitpid(child, 0)

        assert status == 0
        assert notes(db) == {"n": "20"}


def test_who_answers_clients_writes_before_those_that_have_waited_longer(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.db._POLITE_SECONDS", 10.0)
    order: list[str] = []

    def write(db: Database, name: str) -> None:
        with db.write():
            order.append(name)

    with (
        opened(sqlite_url, 5) as calm, opened(sqlite_url, 5, urgent=True) as urgent,
        ThreadPoolExecutor(3) as pool, _gate(sqlite_url).open("a") as other,
    ):  # fmt: skip
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = [pool.submit(write, calm, "calm") for _ in range(2)]
        pause(0.05)
        waiting.append(pool.submit(write, urgent, "urgent"))
        pause(0.05)
        fcntl.flock(other, fcntl.LOCK_UN)
        for one in waiting:
            one.result()

    assert order == ["urgent", "calm", "calm"]


def test_threads_of_a_process_follow_each_other_in(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.db._TURN_SECONDS", 60.0)
    order: list[str] = []

    def write(db: Database, name: str) -> None:
        with db.write():
            order.append(name)

    with (
        opened(sqlite_url, 5) as one, opened(sqlite_url, 5) as two,
        ThreadPoolExecutor(8) as pool, _gate(sqlite_url).open("a") as other,
    ):  # fmt: skip
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = [pool.submit(write, db, name) for db, name in [(one, "one"), (two, "two")] * 4]
        pause(0.1)
        fcntl.flock(other, fcntl.LOCK_UN)
        for write_ in waiting:
            write_.result()

    assert order in (["one"] * 4 + ["two"] * 4, ["two"] * 4 + ["one"] * 4)


def test_a_process_whose_turn_is_over_lets_others_in(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.db._TURN_SECONDS", 0.0)
    stop = threading.Event()

    def write(db: Database) -> None:
        while not stop.is_set():
            with db.write():
                pause(0.01)

    with opened(sqlite_url, 30) as many, opened(sqlite_url, 30) as alone, ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(write, many)
        try:
            note(alone, "a")
        finally:
            stop.set()

        assert notes(alone) == {"a": "1"}


def test_who_gives_up_as_the_gate_is_left_open_for_it_goes_in_after_all(sqlite_url: str) -> None:
    with opened(sqlite_url) as db:
        note(db, "a", "1")
        assert db._gate is not None
        door = db._gate._doors[os.getpid()]
        door.threads = _LeftOpen(door)  # type: ignore[assignment]
        note(db, "a", "2")

        with opened(sqlite_url) as other:
            note(other, "b")
        assert notes(db) == {"a": "2", "b": "1"}


class _LeftOpen:
    """The lock of a door whose holder leaves the gate open for one that no longer waits."""

    def __init__(self, door: Any) -> None:
        self.door = door

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            fcntl.flock(self.door.file, fcntl.LOCK_EX)
            self.door.left_open = True
        return not blocking

    def release(self) -> None:
        self.door.left_open = False


def test_an_urgent_process_that_is_frozen_holds_the_others_up_once(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.db._POLITE_SECONDS", 60.0)  # whoever waits for it so long, or does so twice, is too late
    monkeypatch.setattr("jobs.db._RUDE_SECONDS", 60.0)
    haste = Path(sqlite_url.removeprefix("sqlite:///") + ".haste")
    with opened(sqlite_url, 5) as db, haste.open("a") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_SH)
        note(db, "a")
        monkeypatch.setattr("jobs.db._GONE_SECONDS", 60.0)
        note(db, "b")

        assert notes(db) == {"a": "1", "b": "1"}


# ── busy ──


def test_a_writer_that_waits_too_long_at_the_gate_is_told_so(sqlite_url: str) -> None:
    gate = _gate(sqlite_url)
    with opened(sqlite_url) as db, gate.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        began = time.monotonic()
        with pytest.raises(DatabaseBusy):
            note(db, "a")
        assert 0.2 < time.monotonic() - began < 5

        fcntl.flock(other, fcntl.LOCK_UN)
        note(db, "b")
        assert notes(db) == {"b": "1"}


def test_a_writer_that_waits_too_long_for_a_thread_of_its_process_is_told_so(sqlite_url: str) -> None:
    with opened(sqlite_url) as db, ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            session.add(Meta(key="a", value="1"))
            with pytest.raises(DatabaseBusy):
                pool.submit(note, db, "b").result()

        assert notes(db) == {"a": "1"}


@pytest.mark.parametrize("lock", ["the gate", "the database"])
def test_clients_do_not_all_find_out_in_full_that_nobody_comes_in(sqlite_url: str, lock: str) -> None:
    with opened(sqlite_url, 1.5, urgent=True) as database, opened(sqlite_url) as other:
        note(database, "0")
        with _gate(sqlite_url).open("a") as held, other.engine.connect() as connection:
            if lock == "the gate":
                fcntl.flock(held, fcntl.LOCK_EX)
            else:
                connection.execution_options(write=True).begin()
            first, *others = _refusals(database, 30)
            connection.rollback()
        note(database, "1")
        assert set(notes(database)) == {"0", "1"}

    assert sum(others) / len(others) < first / 2


def _refusals(database: Database, threads: int) -> list[float]:
    """How long the first takes to be refused, and then many at once."""

    def refused(number: int) -> float:
        began = time.monotonic()
        with pytest.raises(DatabaseBusy):
            note(database, f"refused-{number}")
        return time.monotonic() - began

    with ThreadPoolExecutor(threads) as pool:
        return [refused(0), *pool.map(refused, range(threads))]


def test_a_lock_held_around_the_gate_is_busy_too(sqlite_url: str) -> None:
    """Another program, a backup say, knows nothing of the gate."""
    outsider = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    with opened(sqlite_url) as db:
        outsider.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy):
            note(db, "a")
        outsider.execute("ROLLBACK")
        note(db, "a")

        assert notes(db) == {"a": "1"}
    outsider.close()


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


def test_a_gate_whose_folder_is_missing_says_which(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/no/such/folder.db") as db, pytest.raises(FileNotFoundError, match=r"\.gate"):
        note(db, "a")


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
    gate = _gate(sqlite_url)
    with opened(sqlite_url, patience=0.05) as db, gate.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.4, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()

        db.retrying(add_one)

        release.join()
        assert notes(db) == {"n": "1"}


def test_work_is_given_up_once_told_to_stop(sqlite_url: str) -> None:
    gate = _gate(sqlite_url)
    stop = threading.Event()
    stop.set()
    with opened(sqlite_url, patience=0.01) as db, gate.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        with pytest.raises(DatabaseBusy):
            db.retrying(add_one, stop)


def test_work_whose_commit_was_not_answered_is_run_again(database_url: str) -> None:
    db = LosesAnswers(database_url)
    db.lose_next = True

    db.retrying(add_one)

    assert notes(db) == {"n": "2"}  # which is why all such work is guarded
    db.close()


def test_what_the_work_returns_is_returned(db: Database) -> None:
    assert db.retrying(lambda session: session.scalar(text("SELECT 7"))) == 7


# ── manners ──


def test_a_loop_of_writes_breathes_for_as_long_as_it_wrote(sqlite: Database) -> None:
    with sqlite.write() as session:
        session.execute(text("SELECT 1"))
        threading.Event().wait(0.2)

    began = time.monotonic()
    sqlite.breathe()

    assert 0.15 < time.monotonic() - began < 1.2


def test_a_breath_ends_when_told_to_stop(sqlite: Database) -> None:
    stop = threading.Event()
    stop.set()
    with sqlite.write() as session:
        session.execute(text("SELECT 1"))
        threading.Event().wait(1)

    began = time.monotonic()
    sqlite.breathe(stop)

    assert time.monotonic() - began < 0.8


@pytest.mark.postgres
def test_nobody_breathes_on_postgresql(postgres: Database) -> None:
    with postgres.write():
        threading.Event().wait(1)

    began = time.monotonic()
    postgres.breathe()

    assert time.monotonic() - began < 0.8


def test_sqlite_is_durable_and_does_not_block_readers(sqlite: Database) -> None:
    with sqlite.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2


@pytest.mark.postgres
def test_a_statement_whose_time_has_ended_is_told_from_a_database_that_is_away(postgres: Database) -> None:
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
    """A server of our own to kill."""
    server = Postgres()
    yield server
    server.close()


@pytest.mark.postgres
def test_a_killed_server_is_busy_and_the_same_sessions_work_when_it_is_back(
    postgres_server: Postgres, mortal: Postgres
) -> None:
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
