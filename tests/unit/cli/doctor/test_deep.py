"""The deep examination: damage of the database, and rows whose objects are not as they say."""

from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from cli.doctor.command import examine
from cli.doctor.findings import Finding, Severity
from jobs.bootstrap import migrate
from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.platform.storage import DiskStorage
from jobs.settings import Settings
from tests.support.pooler import Pooler

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


def change(url: str, statement: str) -> None:
    db = Database(url)
    with db.write() as session:
        session.execute(text(statement))
    db.close()


def test_a_sound_deployment_is_sound_to_the_bottom(folder: Path) -> None:
    found = deeply(folder)

    assert found["database content"].health is found["stored files"].health is Severity.FINE
    assert "2 are there" in found["stored files"].message
    assert "database content" not in {finding.check for finding in examine(folder)}


def test_objects_that_are_missing_or_cut_off_are_named_and_those_of_deleted_files_are_not(folder: Path) -> None:
    (folder / "files" / "files" / "a").unlink()
    (folder / "files" / "files" / "b").write_bytes(CONTENT[:3])
    (folder / "files" / "files" / "c").unlink()

    found = deeply(folder)["stored files"]

    assert found.health is Severity.BROKEN
    assert found.message.startswith("2 of 2 are missing or have another size")
    assert {name for name in "abc" if f"files/{name}" in found.message} == {"a", "b"}


def test_damaged_pages_of_sqlite_are_found(folder: Path) -> None:
    path = folder / "nightmill.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 8192 * 4096  # tables and indexes; the schema at the beginning stays
    data[middle : middle + 3 * 4096] = b"\x5a" * (3 * 4096)
    path.write_bytes(data)

    found = deeply(folder)["database content"]

    assert found.health is Severity.BROKEN
    assert "backup" in found.fix


@pytest.mark.postgres
def test_postgresql_is_checked_for_damage_that_it_knows_of(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", postgres_url)
    monkeypatch.setenv("NIGHTMILL_FLOWER_PORT", "1")
    sound = deeply(tmp_path)["database content"]
    change(
        postgres_url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_file_project_created'::regclass"
    )

    damaged = deeply(tmp_path)["database content"]

    assert sound.health is not Severity.BROKEN, sound.message
    assert (damaged.health, damaged.message) == (
        Severity.BROKEN,
        "the index ix_file_project_created is not valid: REINDEX INDEX ix_file_project_created",
    )


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the pooler drops connections
def test_pooler_without_statement_timeout_is_reported_as_warning(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_FLOWER_PORT", "1")

    def found(url: str) -> Finding | None:
        monkeypatch.setenv("NIGHTMILL_DATABASE_URL", url)
        return {finding.check: finding for finding in examine(tmp_path)}.get("database pooler")

    with Pooler(postgres_url) as url:
        unlimited = found(url)
    database = make_url(postgres_url).database
    change(postgres_url, f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET statement_timeout = '30s'")
    with Pooler(postgres_url) as url:
        limited = found(url)

    assert found(postgres_url) is None
    assert unlimited is not None
    assert limited is not None
    assert (unlimited.health, limited.health) == (Severity.WARNING, Severity.FINE)
    assert "statement_timeout" in unlimited.fix
