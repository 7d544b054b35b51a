"""The gate of SQLite's writers: who goes first, who follows, who is told that it waits too long."""

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
from jobs.db.writer_lock import Door, Gate
from jobs.errors import DatabaseBusy
from jobs.fleet.tables import Meta
from jobs.platform.locks import FileLock
from jobs.timings import Timings
from tests.support.noting import gate_of, note, notes, opened
from tests.support.system import eventually, pause


@pytest.fixture
def name(tmp_path: Path) -> str:
    return str(tmp_path / "some.db")


@contextmanager
def gate(name: str, patience: float = 30.0, *, urgent: bool = False, **seconds: float) -> Iterator[Gate]:
    made = Gate(name, patience, urgent, replace(Timings(), **seconds))
    yield made
    made.close()


def door_of(gate: Gate) -> Door:
    return gate._doors[os.getpid()]


def test_a_fork_passes_by_a_door_of_its_own(name: str) -> None:
    def passes() -> int:
        """Of a child: 1 it does, 2 it does not, 3 neither."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 3
        try:
            with one.hold():
                code = 1 if set(one._doors) == {os.getpid()} else 3
        except DatabaseBusy:
            code = 2
        finally:
            os._exit(code)

    with gate(name, 0.2) as one:
        with one.hold():
            assert passes() == 2
        assert passes() == 1


def test_who_answers_clients_goes_before_those_that_have_waited_longer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.db.writer_lock._GONE_LOOKS", 1_000_000)
    order: list[str] = []

    def go(at: Gate, who: str) -> None:
        with at.hold():
            order.append(who)

    with (
        gate(name, writer_polite=60.0) as calm,
        gate(name, urgent=True) as urgent,
        gate(name) as other,
        ThreadPoolExecutor(3) as pool,
    ):
        with other.hold():
            going = [pool.submit(go, calm, "calm") for _ in range(2)]
            eventually(lambda: door_of(calm).waiting == 1, 30, "one is at the file, one behind it")
            going.append(pool.submit(go, urgent, "urgent"))
            eventually(lambda: door_of(urgent).hurrying == 1, 30, "it says so")
        for one in going:
            one.result()

    assert order == ["urgent", "calm", "calm"]


def test_threads_of_a_process_follow_each_other_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    taken: list[str] = []

    try_acquire = FileLock.try_acquire

    def noted(lock: FileLock, **options: bool) -> bool:
        acquired = try_acquire(lock, **options)
        if acquired and lock.path.name.endswith(".gate"):
            taken.append(lock.path.name)
        return acquired

    def go(at: Gate, who: str) -> None:
        with at.hold():
            order.append(who)

    monkeypatch.setattr(FileLock, "try_acquire", noted)
    turn = {"writer_turn": 60.0}
    with gate(name, **turn) as one, gate(name, **turn) as two, gate(name) as other, ThreadPoolExecutor(8) as pool:
        with other.hold():
            going = [pool.submit(go, at, who) for at, who in [(one, "one"), (two, "two")] * 4]
            for at in (one, two):
                eventually(lambda at=at: door_of(at).waiting == 3, 30, "one is at the file, three behind it")
            taken.clear()
        for each in going:
            each.result()

    assert order in (["one"] * 4 + ["two"] * 4, ["two"] * 4 + ["one"] * 4)
    assert len(taken) == 2


def test_a_process_whose_turn_is_over_rests_where_others_can_come_in(
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
        gate(name, writer_turn=0.0, writer_rest=2.0) as many,
        gate(name) as alone,
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


def test_who_finds_the_file_wrong_leaves_the_gate_to_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> bool:
        raise OSError(errno.EMFILE, "too many")

    with gate(name) as one, gate(name, 0.2) as other:
        with monkeypatch.context() as patched:
            patched.setattr(Gate, "_others_hurry", breaks)
            with pytest.raises(OSError, match="too many"):
                one.hold().__enter__()

        with other.hold() as door:
            assert door is door_of(other)


@pytest.mark.parametrize("urgent", [False, True])
def test_who_waits_at_a_gate_that_is_closed_meanwhile_goes_in_all_the_same(name: str, urgent: bool) -> None:
    order: list[str] = []

    def go() -> None:
        with closed.hold():
            order.append("in")

    with gate(name) as other, ThreadPoolExecutor(3) as pool:
        closed = Gate(name, 30.0, urgent)
        with other.hold():
            going = [pool.submit(go) for _ in range(3)]
            eventually(lambda: closed._doors and door_of(closed).waiting == 2, 30, "one is at the file, two behind it")
            door = door_of(closed)
            closed.close()
        for each in going:
            each.result()

    assert order == ["in"] * 3
    assert (door.file.is_open, door.haste.is_open) == (False, False)


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
    slow = replace(Timings(), writer_polite=60.0, writer_rude=60.0)  # one that waits so long, or twice, is too late
    haste = Path(sqlite_url.removeprefix("sqlite:///") + ".haste")
    with opened(sqlite_url, 5, timings=slow) as db, haste.open("a") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_SH)
        note(db, "a")
        monkeypatch.setattr("jobs.db.writer_lock._GONE_LOOKS", 1_000_000)
        note(db, "b")

        assert notes(db) == {"a": "1", "b": "1"}


# ── busy ──


def test_a_writer_that_waits_too_long_at_the_gate_is_told_so(sqlite_url: str) -> None:
    gate = gate_of(sqlite_url)
    with opened(sqlite_url) as db, gate.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        began = time.monotonic()
        with pytest.raises(DatabaseBusy):
            note(db, "a")
        assert time.monotonic() - began > 0.2

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
        with gate_of(sqlite_url).open("a") as held, other.engine.connect() as connection:
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


def test_a_gate_whose_folder_is_missing_says_which(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/no/such/folder.db") as db, pytest.raises(FileNotFoundError, match=r"\.gate"):
        note(db, "a")
