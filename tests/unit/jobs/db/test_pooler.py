"""A pooler such as PgBouncer, in transaction mode, between the processes and PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.fleet.leadership import Leadership
from jobs.fleet.tables import Meta
from jobs.settings import Settings
from tests.support.pooler import Pooler
from tests.support.services import Postgres
from tests.support.system import eventually

pytestmark = [
    pytest.mark.dialects,
    pytest.mark.postgres,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # the pooler drops connections
]


@pytest.fixture
def pooled(postgres_url: str) -> Iterator[str]:
    with Pooler(postgres_url) as url:
        yield url


def opened(stack: ExitStack, url: str) -> Database:
    db = Database(url, patience=10)
    stack.callback(db.close)
    return db


def test_prepared_statements_do_not_conflict_through_pooler(pooled: str) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(6) as threads:
        databases = [opened(stack, pooled) for _ in range(3)]

        def work(number: int) -> None:
            for turn in range(20):  # psycopg prepares a statement that comes for the sixth time
                with databases[number % 3].write() as session:
                    session.add(Meta(key=f"{number}-{turn}", value=""))
                with databases[number % 3].read() as session:
                    assert session.get(Meta, f"{number}-{turn}")

        for done in [threads.submit(work, number) for number in range(6)]:
            done.result(60)


@pytest.mark.parametrize("way", ["direct", "pooled"])
def test_single_dispatcher_leads_across_pooled_and_direct_connections(postgres_url: str, pooled: str, way: str) -> None:
    with ExitStack() as stack:
        urls = pooled, {"direct": postgres_url, "pooled": pooled}[way]
        first, second = [Leadership(Settings(database_url=url), opened(stack, url)) for url in urls]

        assert (first.take(), second.take()) == (True, False)
        assert (first.holds(), first.taken(), second.taken()) == (True, True, True)
        first.drop()
        eventually(second.take, 30, "the second leads")
        assert (first.holds(), second.holds()) == (False, True)
        second.drop()


def test_the_lock_of_a_leader_keeps_no_row_from_being_removed(postgres_url: str, pooled: str) -> None:
    with ExitStack() as stack:
        leading = Leadership(Settings(database_url=pooled), opened(stack, pooled))
        assert leading.take()
        assert leading.holds()
        with opened(stack, postgres_url).read() as session:
            idle = """
                SELECT backend_xmin, backend_xid FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in%'
            """
            assert session.execute(text(idle)).all() == [(None, None)]
        leading.drop()


def test_the_release_step_and_the_limits_of_statements_work_through_a_pooler(postgres_server: Postgres) -> None:
    with postgres_server.database(migrated=False) as url, Pooler(url, size=2) as way, ExitStack() as stack:
        migrate(way)
        with opened(stack, way).read() as session:
            assert session.scalar(text("SHOW statement_timeout")) == "30s"


def test_a_connection_of_its_own_has_the_limits_and_is_known_as_such(postgres_url: str) -> None:
    with ExitStack() as stack, opened(stack, postgres_url).engine.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        assert connection.scalar(text("SHOW lock_timeout")) == "10s"
        assert connection.connection.driver_connection.pooled is False  # type: ignore[union-attr]
