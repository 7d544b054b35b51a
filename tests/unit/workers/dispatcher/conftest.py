"""A dispatcher for each test."""

from pathlib import Path

import pytest

from jobs.db.engine import Database
from jobs.security import keys
from tests.support.dispatcher import DispatcherHarness


@pytest.fixture
def harness(db: Database, tmp_path: Path) -> DispatcherHarness:
    with db.write() as session:
        for name in ("one", "two"):
            keys.ensure_project(session, name)
    return DispatcherHarness(db, tmp_path)
