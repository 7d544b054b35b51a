"""An app over an empty database, and clients of two projects."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.web import make_key, running_app

METRICS_KEY = "a key of metrics"


@pytest.fixture
def make_app(tmp_path: Path, sqlite_url: str) -> Iterator[Callable[..., FastAPI]]:
    """Return a function that makes an app with the given settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_app(tmp_path, sqlite_url, **settings))


@pytest.fixture
def app(make_app: Callable[..., FastAPI]) -> FastAPI:
    return make_app()


@pytest.fixture(scope="module")
def shared_app(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[FastAPI]:
    """Return an app for all tests of a module that leave no trace."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(sqlite_template, folder / "nightmill.db")
    many = {"project_finetune_jobs": 1000, "project_eval_runs": 1000}  # operations create more than a project may
    with running_app(folder, "", metrics_key=METRICS_KEY, **many) as app:
        yield app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    """Return a client with a key of the default project."""
    return client_of(app, make_key(app))


@pytest.fixture
def stranger(app: FastAPI) -> TestClient:
    """Return a client with a key of another project."""
    return client_of(app, make_key(app, "another"))


@pytest.fixture
def nobody(app: FastAPI) -> TestClient:
    """Return a client without a key."""
    return local_client(app)


def local_client(app: FastAPI) -> TestClient:
    """Return a client on this host, without a key."""
    return TestClient(app, raise_server_exceptions=False, client=("127.0.0.1", 50_000))


def client_of(app: FastAPI, key: str) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture
def either(database_url: str, tmp_path: Path) -> Iterator[FastAPI]:
    """Return an app over SQLite, and one over PostgreSQL."""
    with running_app(tmp_path, database_url) as app:
        yield app
