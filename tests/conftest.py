"""Fixtures that any test may use.

db                 a migrated, empty database: the test runs once on SQLite and once on PostgreSQL
sqlite, postgres   the same, on one of them
storage            a folder of its own
postgres_server    the server itself; it is started once, by the first test that needs it
s3                 a server that speaks S3, likewise
"""

import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import jobs.known_kinds  # noqa: F401 (fills the table that every move of a job looks at)
from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.platform.storage import DiskStorage
from jobs.tables import Base
from tests.support.services import MEMORY, S3, Postgres, need

# A shell that starts us in the background has SIGINT ignored, and whatever we start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: Where tests go whole ways, over statements that have tests in `unit/jobs`.
_WHOLE_WAYS = ("tests/integration/", "tests/acceptance/", "tests/unit/cli/", "tests/unit/workers/retrieval/")
#: Of the tests that take long, those that `make verify` runs on both databases: the way of a batch, what interrupts it,
#: upgrades, and what is done at once.
_ON_BOTH_DATABASES = frozenset(
    {"test_batch", "test_interrupted", "test_migrations", "test_sdk_whole_way", "test_threads", "test_upgrade"}
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make verify` PostgreSQL and Weaviate, and all variants of a test but the `first`.

    Tests of what differs between databases run on PostgreSQL in `make test` as well. Leave what is marked `soak` to
    `make soak`, and the second database of most tests that take long.
    """
    variants = Counter[str]()
    for item in items:
        if _takes_long(item) and _is_second_database(item):
            item.add_marker(pytest.mark.soak)
        postgres = item.get_closest_marker("postgres") and not item.get_closest_marker("dialects")
        if postgres or "weaviate" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.verify)
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.verify)
        first = item.get_closest_marker("first")
        if first and not item.get_closest_marker("verify"):
            name = item.nodeid.partition("[")[0]
            variants[name] += 1
            if variants[name] > first.args[0]:
                item.add_marker(pytest.mark.verify)


def _takes_long(item: pytest.Item) -> bool:
    is_whole_way = item.nodeid.startswith(_WHOLE_WAYS)
    return (is_whole_way or item.get_closest_marker("verify") is not None) and item.path.stem not in _ON_BOTH_DATABASES


def _is_second_database(item: pytest.Item) -> bool:
    """Return whether another variant of the test runs on SQLite, and what is tested differs little between them."""
    of_variant = item.callspec.marks if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    return any(mark.name == "postgres" for mark in of_variant) and not item.get_closest_marker("dialects")


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remember no deployment of a test among those of the user, and name no server but those of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("OPENAI_BASE_URL", raising=False)
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    try:
        server = Postgres()
    except Exception as error:  # noqa: BLE001 (whatever keeps it from starting: it is not here)
        need("PostgreSQL", error)
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    try:
        server = S3()
    except Exception as error:  # noqa: BLE001 (whatever keeps it from starting: it is not here)
        need("S3", error)
    yield server
    server.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrate a file once; copying it is a hundred times cheaper than migrating another."""
    path = tmp_path_factory.mktemp("template") / "nightmill.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path) -> Iterator[str]:
    with copied(sqlite_template) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture(scope="session")
def shared_sqlite(sqlite_template: Path) -> Iterator[Database]:
    with copied(sqlite_template) as url:
        yield from _open(url)


@pytest.fixture(scope="session")
def shared_postgres(postgres_server: Postgres) -> Iterator[Database]:
    with postgres_server.database() as url:
        yield from _open(url)


@pytest.fixture
def sqlite(shared_sqlite: Database) -> Iterator[Database]:
    yield shared_sqlite
    _empty(shared_sqlite)


@pytest.fixture
def postgres(shared_postgres: Database) -> Iterator[Database]:
    yield shared_postgres
    _empty(shared_postgres)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def db(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(request.param)
    return database


@pytest.fixture
def storage(tmp_path: Path) -> DiskStorage:
    return DiskStorage(tmp_path / "files")


@contextmanager
def copied(template: Path) -> Iterator[str]:
    """In memory where there is such a folder: the fsync of every commit is what the tests would wait for."""
    with tempfile.TemporaryDirectory(prefix="nightmill-db-", dir=MEMORY) as folder:
        path = Path(folder) / "nightmill.db"
        shutil.copy(template, path)
        yield f"sqlite:///{path}"


def _open(url: str) -> Iterator[Database]:
    database = Database(url, patience=10, pool_size=20)
    yield database
    database.close()


def _empty(database: Database) -> None:
    """Delete all rows after a test; on PostgreSQL in one script, which takes a tenth of the time of TRUNCATE."""
    deletes = [f'DELETE FROM "{name}"' for name in Base.metadata.tables]
    with database.write() as session:
        connection = session.connection()
        for statement in deletes if connection.dialect.name == "sqlite" else ["; ".join(deletes)]:
            connection.exec_driver_sql(statement)
