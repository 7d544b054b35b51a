"""A PostgreSQL that says nothing: frozen, or cut off without a word; and one that is only slow."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.db.watchdog import answers
from jobs.errors import DatabaseBusy
from jobs.timings import Timings
from tests.support.proxy import Proxy
from tests.support.services import Postgres
from tests.support.system import signal_all

pytestmark = [pytest.mark.dialects, pytest.mark.postgres]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    made = Postgres()
    yield made
    made.close()


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    with server.database() as made:
        yield made


@contextmanager
def _frozen(server: Postgres) -> Iterator[None]:
    processes = server.processes()
    signal_all(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(processes, signal.SIGCONT)


@contextmanager
def _opened(url: str, timings: Timings = Timings()) -> Iterator[Database]:
    db = Database(url, patience=0.6, timings=timings)
    yield db
    db.close()


def _socket(url: str) -> tuple[str, int]:
    return str(make_url(url).query["host"]), 5432


def _one(session: Session) -> int:
    return int(session.scalar(text("SELECT 1")) or 0)


def test_frozen_server_is_busy_and_query_succeeds_after_thaw(server: Postgres, url: str) -> None:
    with _opened(url) as db:
        with db.read() as session:
            assert _one(session) == 1
        with _frozen(server):
            for _ in range(3):  # on the connection of before, then on none
                with pytest.raises(DatabaseBusy), db.read() as session:
                    _one(session)
        assert db.retrying(_one) == 1


def test_freeze_during_transaction_raises_database_busy(server: Postgres, url: str) -> None:
    def frozen_meanwhile(session: Session) -> int:
        _one(session)
        with _frozen(server):
            return _one(session)

    with _opened(url) as db, pytest.raises(DatabaseBusy), db.write() as session:
        frozen_meanwhile(session)


def test_a_statement_that_takes_longer_than_ones_patience_is_waited_for(url: str) -> None:
    with _opened(url) as db, db.read() as session:
        assert session.scalar(text("SELECT 7 FROM pg_sleep(1.5)")) == 7


def test_a_connection_that_was_lost_without_a_word_is_given_up_although_the_server_is_there(
    url: str,
) -> None:
    folder, port = _socket(url)
    with Proxy(f"{folder}/.s.PGSQL.{port}") as proxy:
        through = make_url(url).set(host="127.0.0.1", port=proxy.port, query={})
        with _opened(through.render_as_string(hide_password=False), replace(Timings(), connection_lost=1.0)) as db:
            with db.read() as session:
                _one(session)
            proxy.swallow()
            proxy.carry()
            assert db.retrying(_one) == 1


def test_a_port_that_takes_connections_and_says_nothing_is_no_server(server: Postgres, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not answers("127.0.0.1", mute.getsockname()[1], 0.2)
    assert not answers("127.0.0.1", 1, 0.2)
    assert not answers(str(Path("/nowhere")), 5432, 0.2)
    assert answers(*_socket(url), 5.0)


def test_notifications_are_awaited_without_polling(url: str) -> None:
    with _opened(url) as db, db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as listener:
        listener.execute(text("LISTEN nobody"))
        driver = listener.connection.driver_connection
        assert driver is not None
        assert list(driver.notifies(timeout=1.0)) == []
        assert listener.scalar(text("SELECT 1")) == 1
        listener.invalidate()
