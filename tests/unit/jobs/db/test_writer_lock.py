"""The lock of SQLite's writers: the order of processes and threads, and what waits too long."""

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.db.engine import Database
from jobs.db.writer_lock import ProcessState, WriterLock
from jobs.errors import DatabaseBusy
from jobs.fleet.tables import Meta
from jobs.platform.locks import FileLock
from jobs.timings import Timings
from tests.support.recorder import lock_file_of, note, notes, opened
from tests.support.system import eventually, pause


@pytest.fixture
def name(tmp_path: Path) -> str:
    return str(tmp_path / "some.db")


@contextmanager
def writer_lock(name: str, patience: float = 30.0, *, urgent: bool = False, **seconds: float) -> Iterator[WriterLock]:
    made = WriterLock(name, patience, urgent, replace(Timings(), **seconds))
    yield made
    made.close()


def state_of(writer_lock: WriterLock) -> ProcessState:
    return writer_lock._states[os.getpid()]


def announced(writer_lock: WriterLock) -> int:
    """Return how many urgent threads have announced that they wait: the count goes up a moment before that."""
    state = state_of(writer_lock)
    with state.counting:
        return state.urgent_waiting


def test_a_fork_has_a_state_of_its_own(name: str) -> None:
    def passes() -> int:
        """Of a child: 1 it does, 2 it does not, 3 neither."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 3
        try:
            with one.hold():
                code = 1 if set(one._states) == {os.getpid()} else 3
        except DatabaseBusy:
            code = 2
        finally:
            os._exit(code)

    with writer_lock(name, 0.2) as one:
        with one.hold():
            assert passes() == 2
        assert passes() == 1


def test_urgent_writer_precedes_longer_waiting_writers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.db.writer_lock._FROZEN_LOOKS", 1_000_000)
    order: list[str] = []

    def go(at: WriterLock, who: str) -> None:
        with at.hold():
            order.append(who)

    with (
        writer_lock(name, writer_yield=60.0) as calm,
        writer_lock(name, urgent=True) as urgent,
        writer_lock(name) as other,
        ThreadPoolExecutor(3) as pool,
    ):
        with other.hold():
            going = [pool.submit(go, calm, "calm") for _ in range(2)]
            eventually(lambda: state_of(calm).waiting == 1, 30, "one is at the file, one behind it")
            going.append(pool.submit(go, urgent, "urgent"))
            eventually(lambda: announced(urgent) == 1, 30, "it says so")
        for one in going:
            one.result()

    assert order == ["urgent", "calm", "calm"]


def test_threads_of_a_process_follow_each_other_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    taken: list[str] = []

    try_acquire = FileLock.try_acquire

    def noted(lock: FileLock, **options: bool) -> bool:
        acquired = try_acquire(lock, **options)
        if acquired and lock.path.name.endswith(".lock"):
            taken.append(lock.path.name)
        return acquired

    def go(at: WriterLock, who: str) -> None:
        with at.hold():
            order.append(who)

    monkeypatch.setattr(FileLock, "try_acquire", noted)
    turn = {"writer_turn": 60.0}
    with (
        writer_lock(name, **turn) as one,
        writer_lock(name, **turn) as two,
        writer_lock(name) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        with other.hold():
            going = [pool.submit(go, at, who) for at, who in [(one, "one"), (two, "two")] * 4]
            for at in (one, two):
                eventually(lambda at=at: state_of(at).waiting == 3, 30, "one is at the file, three behind it")
            taken.clear()
        for each in going:
            each.result()

    assert order in (["one"] * 4 + ["two"] * 4, ["two"] * 4 + ["one"] * 4)
    assert len(taken) == 2


@pytest.mark.verify
def test_process_pauses_after_its_turn_so_other_writer_enters(
    name: str,
) -> None:
    stop = threading.Event()
    times = 0

    def go_on() -> None:
        nonlocal times
        while not stop.is_set():
            with many.hold():
                times += 1
                pause(0.01)

    with (
        writer_lock(name, writer_turn=0.0, writer_pause=2.0) as many,
        writer_lock(name) as alone,
        ThreadPoolExecutor(4) as pool,
    ):
        for _ in range(4):
            pool.submit(go_on)
        try:
            eventually(lambda: times > 0, 30, "they have begun")
            before = times
            with alone.hold():
                meanwhile = times - before
        finally:
            stop.set()

    assert meanwhile <= 2


def test_failed_acquisition_leaves_lock_to_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> bool:
        raise OSError(errno.EMFILE, "too many")

    with writer_lock(name) as one, writer_lock(name, 0.2) as other:
        with monkeypatch.context() as patched:
            patched.setattr(WriterLock, "_urgent_waits", breaks)
            with pytest.raises(OSError, match="too many"):
                one.hold().__enter__()

        with other.hold() as state:
            assert state is state_of(other)


@pytest.mark.parametrize("urgent", [False, True])
def test_waiting_writers_enter_after_lock_is_closed(name: str, urgent: bool) -> None:
    order: list[str] = []

    def go() -> None:
        with closed.hold():
            order.append("in")

    with writer_lock(name) as other, ThreadPoolExecutor(3) as pool:
        closed = WriterLock(name, 30.0, urgent)
        with other.hold():
            going = [pool.submit(go) for _ in range(3)]
            eventually(
                lambda: closed._states and state_of(closed).waiting == 2, 30, "one is at the file, two behind it"
            )
            state = state_of(closed)
            closed.close()
        for each in going:
            each.result()

    assert order == ["in"] * 3
    assert (state.file.is_open, state.priority.is_open) == (False, False)


def test_writer_enters_if_handover_coincides_with_timeout(sqlite_url: str) -> None:
    with opened(sqlite_url) as db:
        note(db, "a", "1")
        assert db._writer_lock is not None
        state = db._writer_lock._states[os.getpid()]
        state.threads = _HandedOn(state)  # type: ignore[assignment]
        note(db, "a", "2")

        with opened(sqlite_url) as other:
            note(other, "b")
        assert notes(db) == {"a": "2", "b": "1"}


class _HandedOn:
    """The lock of threads whose holder hands the writer lock on to one that no longer waits."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            fcntl.flock(self.state.file, fcntl.LOCK_EX)
            self.state.handed_on = True
        return not blocking

    def release(self) -> None:
        self.state.handed_on = False


def test_an_urgent_process_that_is_frozen_holds_the_others_up_once(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = replace(Timings(), writer_yield=60.0, writer_ignore=60.0)  # one that waits so long, or twice, is too late
    priority = Path(sqlite_url.removeprefix("sqlite:///") + ".priority")
    with opened(sqlite_url, 5, timings=slow) as db, priority.open("a") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_SH)
        note(db, "a")
        monkeypatch.setattr("jobs.db.writer_lock._FROZEN_LOOKS", 1_000_000)
        note(db, "b")

        assert notes(db) == {"a": "1", "b": "1"}


# ── busy ──


def test_wait_for_lock_of_other_process_ends_as_database_busy(sqlite_url: str) -> None:
    writer_lock = lock_file_of(sqlite_url)
    with opened(sqlite_url) as db, writer_lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        began = time.monotonic()
        with pytest.raises(DatabaseBusy):
            note(db, "a")
        assert time.monotonic() - began > 0.2

        fcntl.flock(other, fcntl.LOCK_UN)
        note(db, "b")
        assert notes(db) == {"b": "1"}


def test_wait_for_thread_of_same_process_ends_as_database_busy(sqlite_url: str) -> None:
    with opened(sqlite_url) as db, ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            session.add(Meta(key="a", value="1"))
            with pytest.raises(DatabaseBusy):
                pool.submit(note, db, "b").result()

        assert notes(db) == {"a": "1"}


@pytest.mark.parametrize("lock", ["the writer lock", "the database"])
def test_later_clients_of_blocked_lock_are_refused_sooner_than_first(sqlite_url: str, lock: str) -> None:
    with opened(sqlite_url, 1.5, urgent=True) as database, opened(sqlite_url) as other:
        note(database, "0")
        with lock_file_of(sqlite_url).open("a") as held, other.engine.connect() as connection:
            if lock == "the writer lock":
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


def test_database_lock_of_outside_program_raises_database_busy(sqlite_url: str) -> None:
    """Another program, a backup say, knows nothing of the writer lock."""
    outsider = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    with opened(sqlite_url) as db:
        outsider.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy):
            note(db, "a")
        outsider.execute("ROLLBACK")
        note(db, "a")

        assert notes(db) == {"a": "1"}
    outsider.close()


def test_missing_lock_folder_error_names_lock_file(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/no/such/folder.db") as db, pytest.raises(FileNotFoundError, match=r"\.lock"):
        note(db, "a")
