"""A dispatcher for each test."""

from pathlib import Path

import pytest

from jobs.db.engine import Database
from jobs.security import keys
from tests.support.house import House


@pytest.fixture
def house(db: Database, tmp_path: Path) -> House:
    with db.write() as session:
        for name in ("one", "two"):
            keys.ensure_project(session, name)
    return House(db, tmp_path)
