"""An empty database of each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.db.engine import Database
from tests.support.databases import KINDS, fresh


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh(request.param, tmp_path) as database:
        yield database
