"""The release step: schema, host, operator's key; again and again, and by two at once."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update

from jobs import bootstrap
from jobs.bootstrap import NewerSchema, migrate, operator_key
from jobs.db.engine import Database
from jobs.db.hosts import WrongHost, claim_host
from jobs.fleet.tables import Meta
from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.security.tables import ApiKey
from jobs.settings import Settings

ROOT = Path(__file__).parents[3]


def release(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.bootstrap"],
        cwd=ROOT,
        env=os.environ | {"NIGHTMILL_DATA_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def opens(db: Database, key: str) -> bool:
    with db.read() as session:
        return keys.check_key(session, key) is not None


def test_a_first_release_makes_a_key_that_opens_and_a_second_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with 100% odd name"

    first = release(folder)
    key = (folder / "operator.key").read_text().strip()
    second = release(folder)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (folder / "operator.key").read_text().strip() == key
    db = Database(Settings(data_dir=folder).database)
    assert opens(db, key)
    assert key not in first.stdout + first.stderr
    db.close()


def test_the_release_step_itself(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "settings", lambda: config)
    monkeypatch.setattr(bootstrap.logs, "configure", lambda level: None)

    bootstrap.main()

    db = Database(config.database)
    assert opens(db, (config.data_dir / "operator.key").read_text().strip())
    with db.read() as session:
        assert session.get_one(Meta, "sqlite_host").value == socket.gethostname()
    db.close()


def test_the_operator_s_key_is_readable_by_its_owner_alone(sqlite: Database, config: Settings) -> None:
    operator_key(sqlite, config)

    mode = stat.S_IMODE((config.data_dir / "operator.key").stat().st_mode)
    assert mode == 0o600
    assert [path.name for path in config.data_dir.iterdir()] == ["operator.key"]


def test_valid_operator_key_is_reused(db: Database, config: Settings) -> None:
    first = operator_key(db, config)
    again = operator_key(db, config)

    assert first == again
    with db.read() as session:
        assert len(session.scalars(select(ApiKey)).all()) == 1


def test_the_operator_s_key_manages_keys_also_after_an_upgrade(db: Database, config: Settings) -> None:
    operator_key(db, config)
    with db.write() as session:
        first = session.scalars(select(ApiKey)).one()
        made, first.manages_keys = (first.id, first.manages_keys), False  # as the migration leaves a key from before

    operator_key(db, config)
    operator_key(db, config)

    with db.read() as session:
        assert (made, session.get_one(ApiKey, made[0]).manages_keys) == ((made[0], True), True)
        assert [row.action for row in session.scalars(select(Audit).order_by(Audit.id))] == [
            "key.create", "key.allow_managing",
        ]  # fmt: skip


@pytest.mark.parametrize("how", ["revoked", "removed", "mangled", "emptied"])
def test_an_operator_s_key_that_opens_nothing_is_replaced(db: Database, config: Settings, how: str) -> None:
    path = config.data_dir / "operator.key"
    first = operator_key(db, config)
    with db.write() as session:
        if how == "revoked":
            session.execute(update(ApiKey).values(revoked_at=1.0))
        elif how == "removed":
            session.execute(delete(ApiKey))
    if how in {"mangled", "emptied"}:
        path.write_text("" if how == "emptied" else "rubbish\n")

    second = operator_key(db, config)

    assert first != second == path.read_text().strip()
    assert opens(db, second)


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    url = Settings(data_dir=tmp_path).database
    migrate(url)
    db = Database(url)
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    db.close()

    with pytest.raises(NewerSchema, match="newer version"):
        migrate(url)


def test_sqlite_belongs_to_the_host_that_made_it(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_host(sqlite)
    claim_host(sqlite)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")

    with pytest.raises(WrongHost, match="PostgreSQL"):
        claim_host(sqlite)


@pytest.mark.postgres
def test_postgresql_belongs_to_no_host(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_host(postgres)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")

    claim_host(postgres)

    with postgres.read() as session:
        assert session.scalars(select(Meta)).all() == []


def test_concurrent_releases_create_schema_and_valid_operator_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.bootstrap"]
    environment = os.environ | {"NIGHTMILL_DATA_DIR": str(tmp_path)}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0], ended
    db = Database(Settings(data_dir=tmp_path).database)
    assert opens(db, (tmp_path / "operator.key").read_text().strip())
    db.close()


@pytest.mark.parametrize("damaged", ["its schema", "its header"])
def test_error_for_damaged_database_is_readable_and_suggests_backup(tmp_path: Path, damaged: str) -> None:
    release(tmp_path)
    path = tmp_path / "nightmill.db"
    data = bytearray(path.read_bytes())
    start = 100 if damaged == "its schema" else 0
    data[start : start + 4000] = b"\x5a" * 4000
    path.write_bytes(data)
    for name in ("nightmill.db-wal", "nightmill.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)

    ended = release(tmp_path)

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("nightmill: The database file is damaged")
    assert "backup" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("revision", "sentence"),
    [
        ("9999", "nightmill: A newer version has migrated this database"),
        ("0046", "nightmill: The schema of this database is too old for this version"),
    ],
)
def test_a_database_of_another_version_ends_the_release_step_with_a_sentence(
    tmp_path: Path, revision: str, sentence: str
) -> None:
    release(tmp_path)
    db = Database(Settings(data_dir=tmp_path).database)
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    db.close()

    ended = release(tmp_path)

    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert sentence in ended.stderr
