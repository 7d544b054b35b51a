"""A single dispatcher leads, on SQLite and PostgreSQL; another follows when it is gone or has lost its database."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from sqlalchemy import text

from jobs.db.engine import Database
from jobs.fleet.leadership import Leadership
from jobs.settings import Settings
from tests.support import sample_jobs
from tests.support.system import GRACE_SECONDS

_END_LEADERS = text("""
    SELECT count(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND datname = current_database()
""")


class Hall:
    """Dispatchers that would lead, over one database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._all: list[Leadership] = []

    def enter(self) -> Leadership:
        self._all.append(Leadership(Settings(database_url=self._db.url), self._db))
        return self._all[-1]

    def clear(self) -> None:
        for one in self._all:
            one.drop()


@pytest.fixture
def hall(db: Database) -> Iterator[Hall]:
    hall = Hall(db)
    yield hall
    hall.clear()


def eventually(true: Callable[[], bool]) -> None:
    pause, ends = threading.Event(), time.monotonic() + GRACE_SECONDS
    while not true():
        assert time.monotonic() < ends, "not in time"
        pause.wait(0.02)


def test_second_dispatcher_leads_after_first_drops_leadership(hall: Hall) -> None:
    first, second = hall.enter(), hall.enter()
    assert first.take()

    refused = second.take()
    second.drop()  # it has nothing to give up

    assert not refused
    assert (first.holds(), second.holds(), second.taken()) == (True, False, True)
    first.drop()
    eventually(second.take)  # PostgreSQL lets go when the connection has ended
    assert (first.holds(), second.holds()) == (False, True)


def _waited(leader: Leadership, seconds: float, stop: threading.Event) -> bool:
    """Whether nothing woke it for so long."""
    began = time.monotonic()
    leader.wait(0.01, seconds, stop)
    return time.monotonic() - began >= seconds


def test_leader_wakes_on_enqueued_message_and_otherwise_waits(db: Database, hall: Hall) -> None:
    leader, stop = hall.enter(), threading.Event()
    assert leader.take()
    eventually(lambda: _waited(leader, 0.3, stop))  # whatever was written before has been heard

    with ThreadPoolExecutor(1) as threads:
        idle = threads.submit(leader.wait, 0.01, 60.0, stop)
        with pytest.raises(TimeoutError):
            idle.result(0.2)
        sample_jobs.submitted(db)

        idle.result(30)


def test_stopped_leader_does_not_wait(hall: Hall) -> None:
    leader, stop = hall.enter(), threading.Event()
    assert leader.take()
    stop.set()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(leader.wait, 1.0, 60.0, stop).result(30)


def test_a_leader_that_cannot_look_for_changes_looks_at_everything(sqlite: Database) -> None:
    hall, stop = Hall(sqlite), threading.Event()
    leader = hall.enter()
    assert leader.take()
    leader.wait(0.0, 0.05, stop)
    seat = cast(Any, leader)._seat
    seat._watch.driver_connection.close()
    began = time.monotonic()

    leader.wait(0.0, 60.0, stop)

    assert time.monotonic() - began < 30
    assert leader.holds()
    leader.wait(0.0, 0.05, stop)
    assert seat._watch is not None, "and looks again"
    hall.clear()


@pytest.mark.postgres
def test_leader_with_cut_connection_loses_leadership_to_other(postgres: Database) -> None:
    hall, stop = Hall(postgres), threading.Event()
    leader, other = hall.enter(), hall.enter()
    assert leader.take()
    assert not other.take()

    with postgres.write() as session:
        assert session.scalar(_END_LEADERS) == 1
    with ThreadPoolExecutor(1) as threads:
        threads.submit(leader.wait, 1.0, 60.0, stop).result(30)  # it looks at once

    assert not leader.holds()
    eventually(other.take)
    assert not leader.take()
    hall.clear()


def test_leadership_is_not_taken_while_database_is_unreachable() -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"

    assert not Leadership(Settings(database_url=url), Database(url, patience=2)).take()
