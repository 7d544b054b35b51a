"""A deployment that ingests and searches, over each database, with vectors in memory or in LanceDB."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.db.engine import Database
from tests.support.ingestion import ReadOnce, Works, works
from workers.retrieval.ingestion import job
from workers.vectors.open_vectors import open_vectors


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "MAX_SHARD_FILES", 3)


@pytest.fixture
def inline(db: Database, tmp_path: Path, parser: ReadOnce) -> Iterator[Works]:
    """Over each database, with vectors in memory; shards of three files."""
    with works(tmp_path, db.url, open_vectors("memory:", tmp_path), parser) as inline:
        yield inline


@pytest.fixture(params=["memory:", ""], ids=["memory", "lance"])
def both(request: pytest.FixtureRequest, sqlite: Database, tmp_path: Path, parser: ReadOnce) -> Iterator[Works]:
    """Over SQLite, with vectors in memory and in LanceDB; shards of three files."""
    vectors = open_vectors(request.param, tmp_path / "vectors")
    with works(tmp_path, sqlite.url, vectors, parser) as inline:
        yield inline
    vectors.close()
