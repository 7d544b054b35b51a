"""Fixtures of the tests that ask as an interactive client or with a browser."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.conftest import copied
from tests.support.browsers import chromium
from tests.support.interactive_api import Shop, running_broker, shops


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker(tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.fixture
def make_shop(tmp_path: Path, sqlite_url: str, redis_url: str) -> Iterator[Callable[..., Shop]]:
    with shops(tmp_path, sqlite_url, redis_url) as make:
        yield make


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Shop]:
    """Return a shop with a worker, on a broker of its own: at that of `redis_url` it would answer for other shops."""
    folder = tmp_path_factory.mktemp("shop")
    with copied(sqlite_template) as url, running_broker(folder) as broker, shops(folder, url, broker) as make:
        made = make()
        with made.open():
            yield made


@pytest.fixture
def shop(deployment: Shop) -> Iterator[Shop]:
    """Return the module's shop for a new project, before anything is stored."""
    with deployment.for_new_project() as shop:
        yield shop


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser of one module: Playwright keeps an event loop in the thread, which other tests must not meet."""
    with chromium() as browser:
        yield browser
