"""The deep examination: damage of the database, and rows whose objects are not as they say."""

from pathlib import Path

import pytest

from cli.doctor.command import examine
from cli.doctor.findings import Finding, Health
from jobs.bootstrap import migrate
from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.platform.storage import DiskStorage
from jobs.settings import Settings

CONTENT = b"0123456789"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data folder with three stored files."""
    monkeypatch.setenv("NIGHTMILL_FLOWER_PORT", "1")
    config = Settings(data_dir=tmp_path)
    migrate(config.database)
    storage, db = DiskStorage(tmp_path / "files"), Database(config.database)
    with db.write() as session:
        for name in "abc":
            storage.put(f"files/{name}", CONTENT)
            session.add(
                File(
                    id=f"file-{name}",
                    project_id="p",
                    purpose="batch",
                    filename=name,
                    bytes=len(CONTENT),
                    path=f"files/{name}",
                    created_at=now(),
                    deleted_at=now() if name == "c" else None,
                )
            )
    db.close()
    return tmp_path


def deeply(folder: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(folder, deep=True)}


def test_a_sound_deployment_is_sound_to_the_bottom(folder: Path) -> None:
    found = deeply(folder)

    assert found["database content"].health is found["stored files"].health is Health.FINE
    assert "2 are there" in found["stored files"].message
    assert "database content" not in {finding.check for finding in examine(folder)}


def test_objects_that_are_missing_or_cut_off_are_named_and_those_of_deleted_files_are_not(folder: Path) -> None:
    (folder / "files" / "files" / "a").unlink()
    (folder / "files" / "files" / "b").write_bytes(CONTENT[:3])
    (folder / "files" / "files" / "c").unlink()

    found = deeply(folder)["stored files"]

    assert found.health is Health.BROKEN
    assert found.message.startswith("2 of 2 are missing or have another size")
    assert {name for name in "abc" if f"files/{name}" in found.message} == {"a", "b"}


def test_damaged_pages_of_sqlite_are_found(folder: Path) -> None:
    path = folder / "nightmill.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 8192 * 4096  # tables and indexes; the schema at the beginning stays
    data[middle : middle + 3 * 4096] = b"\x5a" * (3 * 4096)
    path.write_bytes(data)

    found = deeply(folder)["database content"]

    assert found.health is Health.BROKEN
    assert "backup" in found.fix
