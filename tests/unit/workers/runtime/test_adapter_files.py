"""Local files of adapters: complete or not there, whatever was killed, and the oldest go when there are many."""

import os
import time
from pathlib import Path

import pytest

from jobs.db.engine import Database
from jobs.errors import NotFound
from jobs.platform.storage import DiskStorage
from jobs.registry.tables import TunedModel
from tests.support import tuned_adapters
from workers.runtime import adapter_files
from workers.runtime.adapter_files import AdapterFiles


@pytest.fixture
def storage(tmp_path: Path) -> DiskStorage:
    return DiskStorage(tmp_path / "files")


def trained(db: Database, storage: DiskStorage, number: int = 0) -> tuple[str, str]:
    """Store a training result; return its location and SHA-256."""
    name = f"ft:m:acme::{number}"
    tuned_adapters.tuned_model(db, storage, name)
    with db.read() as session:
        row = session.query(TunedModel).filter_by(name=name).one()
        return row.location, row.sha256


def test_leftovers_of_killed_process_are_no_adapter_and_are_removed(
    sqlite: Database, storage: DiskStorage, tmp_path: Path
) -> None:
    location, sha256 = trained(sqlite, storage)
    folder = tmp_path / "adapters"
    left = folder / ".partial-killed"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"the first half")
    half = folder / adapter_files.name_of(sha256)
    half.mkdir()
    os.utime(left, (time.time() - 7200,) * 2)

    adapter = AdapterFiles(storage, folder).fetch(location, sha256)

    assert sorted(path.name for path in adapter.folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert list(folder.iterdir()) == [adapter.folder]


def test_oldest_adapters_are_removed_above_limit(
    sqlite: Database, storage: DiskStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_files, "_MAX_FOLDERS", 2)
    files = AdapterFiles(storage, tmp_path / "adapters")
    made = [trained(sqlite, storage, number) for number in range(3)]
    for number, (location, sha256) in enumerate(made):
        fetched = files.fetch(location, sha256)
        os.utime(fetched.folder, (time.time() - 7200 + number,) * 2)

    there = [files.ready(sha256) is not None for _, sha256 in made]

    assert there == [False, True, True]
    assert files.fetch(*made[0]).folder.is_dir()


def test_result_with_deleted_files_is_not_found(sqlite: Database, storage: DiskStorage, tmp_path: Path) -> None:
    location, sha256 = trained(sqlite, storage)
    storage.delete(location)

    with pytest.raises(NotFound):
        AdapterFiles(storage, tmp_path / "adapters").fetch(location, sha256)
