"""A deployment that may read a folder, a bucket and a web site, over each database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.db.engine import Database
from jobs.timings import Timings
from tests.support.ingestion import ReadOnce, Works, works
from tests.support.services import S3
from tests.support.source_sync import TEXTS, write
from tests.support.web_site import Site
from workers.retrieval.ingestion import job
from workers.vectors.open_vectors import open_vectors


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "MAX_SHARD_FILES", 3)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Create a folder on the server."""
    for name, text in TEXTS.items():
        write(tmp_path / "library" / name, text)
    return tmp_path / "library"


@pytest.fixture
def inline(sqlite: Database, tmp_path: Path, parser: ReadOnce, library: Path) -> Iterator[Works]:
    """Over SQLite."""
    with running(sqlite, tmp_path, parser, library) as inline:
        yield inline


@pytest.fixture
def each(db: Database, tmp_path: Path, parser: ReadOnce, library: Path) -> Iterator[Works]:
    """Over each database."""
    with running(db, tmp_path, parser, library) as inline:
        yield inline


#: A file looks old enough to be told by its looks as soon as it is written.
TIMINGS = Timings(source_settled=-1.0, source_fetch=2.0)


@contextmanager
def running(db: Database, folder: Path, parser: ReadOnce, library: Path, **more: Any) -> Iterator[Works]:
    settings: dict[str, Any] = {"source_folders": (str(library),), "source_s3": (f"s3://{S3.bucket}/library",)}
    settings |= {"source_allow_private": True, "source_max_items": 10}
    with works(folder / "data", db.url, open_vectors("memory:", folder), parser, TIMINGS, **settings, **more) as inline:
        yield inline


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site
