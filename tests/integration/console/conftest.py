"""Fixtures of the tests of the console's pages: a browser, a deployment with workers, a tab that is signed in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from jobs.db.engine import Database
from tests.support.console import Console, Deployment, console_of, deployed


@pytest.fixture
def deployment(sqlite: Database, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(sqlite, tmp_path) as deployment:
        yield deployment


@pytest.fixture
def console(browser: Browser, deployment: Deployment) -> Iterator[Console]:
    """Return a tab that is signed in with the key of the project."""
    with console_of(browser, deployment) as console:
        yield console


@pytest.fixture
def visitor(browser: Browser, deployment: Deployment) -> Iterator[Console]:
    """Return a tab without a key."""
    with console_of(browser, deployment, signed_in=False) as console:
        yield console


@pytest.fixture
def operator(browser: Browser, deployment: Deployment) -> Iterator[Console]:
    """Return a tab with the key of the project and with that of the operator."""
    with console_of(browser, deployment, operator=True) as console:
        yield console
