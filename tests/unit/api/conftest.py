"""An app over an empty database, and clients of two projects."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.databases import KINDS, new_postgres_database
from tests.support.web import make_app, make_key


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    app = make_app(tmp_path)
    yield app
    app.state.services.db.close()


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    """A client with a key of the default project."""
    return client_of(app, make_key(app))


@pytest.fixture
def stranger(app: FastAPI) -> TestClient:
    """A client with a key of another project."""
    return client_of(app, make_key(app, "another"))


@pytest.fixture
def nobody(app: FastAPI) -> TestClient:
    """A client without a key."""
    return TestClient(app, raise_server_exceptions=False)


def client_of(app: FastAPI, key: str) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FastAPI]:
    """An app over SQLite and one over PostgreSQL."""
    url = "" if request.param == "sqlite" else new_postgres_database()
    app = make_app(tmp_path, database_url=url)
    yield app
    app.state.services.db.close()
