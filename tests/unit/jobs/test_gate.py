"""The gate of SQLite's writers: who goes first, who follows, who is told that it waits too long."""

import fcntl
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.db import Database
from jobs.errors import DatabaseBusy
from jobs.models import Meta
from tests.support.noting import add_one, gate_of, note, notes, opened, write_many
from tests.support.system import pause


def test_a_fork_passes_the_gate_by_a_door_of_its_own(sqlite_url: str) -> None:
    with opened(sqlite_url, patience=30) as db:
        note(db, "n", "0")
        db.engine.dispose()
        child = os.fork()
        if not child:
            db.engine.dispose(close=False)
            write_many(sqlite_url, 10)
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
    monkeypatch.setattr("jobs.gate._POLITE_SECONDS", 10.0)
    order: list[str] = []

    def write(db: Database, name: str) -> None:
        with db.write():
            order.append(name)

    with (
        opened(sqlite_url, 5) as calm, opened(sqlite_url, 5, urgent=True) as urgent,
        ThreadPoolExecutor(3) as pool, gate_of(sqlite_url).open("a") as other,
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
    monkeypatch.setattr("jobs.gate._TURN_SECONDS", 60.0)
    order: list[str] = []

    def write(db: Database, name: str) -> None:
        with db.write():
            order.append(name)

    with (
        opened(sqlite_url, 5) as one, opened(sqlite_url, 5) as two,
        ThreadPoolExecutor(8) as pool, gate_of(sqlite_url).open("a") as other,
    ):  # fmt: skip
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = [pool.submit(write, db, name) for db, name in [(one, "one"), (two, "two")] * 4]
        pause(0.1)
        fcntl.flock(other, fcntl.LOCK_UN)
        for write_ in waiting:
            write_.result()

    assert order in (["one"] * 4 + ["two"] * 4, ["two"] * 4 + ["one"] * 4)


def test_a_process_whose_turn_is_over_lets_others_in(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.gate._TURN_SECONDS", 0.0)
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
    monkeypatch.setattr(
        "jobs.gate._POLITE_SECONDS", 60.0
    )  # whoever waits for it so long, or does so twice, is too late
    monkeypatch.setattr("jobs.gate._RUDE_SECONDS", 60.0)
    haste = Path(sqlite_url.removeprefix("sqlite:///") + ".haste")
    with opened(sqlite_url, 5) as db, haste.open("a") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_SH)
        note(db, "a")
        monkeypatch.setattr("jobs.gate._GONE_SECONDS", 60.0)
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
