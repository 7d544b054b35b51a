"""Fixtures that any test may use.

db                 a migrated, empty database: the test runs once on SQLite and once on PostgreSQL
sqlite, postgres   the same, on one of them
storage            a folder of its own
postgres_server    the server itself; it is started once, by the first test that needs it
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.bootstrap import migrate
from jobs.db import Database
from jobs.storage import DiskStorage
from tests.support.services import Postgres, need


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    try:
        server = Postgres()
    except Exception as error:  # noqa: BLE001 (whatever keeps it from starting: it is not here)
        need("PostgreSQL", error)
    yield server
    server.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file: to copy it is a hundred times cheaper than to make one."""
    path = tmp_path_factory.mktemp("template") / "nightmill.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "nightmill.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    yield from _open(database_url)


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    yield from _open(sqlite_url)


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    yield from _open(postgres_url)


@pytest.fixture
def storage(tmp_path: Path) -> DiskStorage:
    return DiskStorage(tmp_path / "files")


def _open(url: str) -> Iterator[Database]:
    database = Database(url, patience=10, pool_size=20)
    yield database
    database.close()
