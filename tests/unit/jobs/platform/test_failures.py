"""Failures of database and storage: counted while nothing can be written, written down once by the next commit."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, StorageFull, StorageUnavailable
from jobs.fleet.tables import Meta
from jobs.ledger import measures
from jobs.platform import failures
from jobs.platform.storage import DiskStorage


@pytest.fixture(autouse=True)
def none_before() -> Iterator[None]:
    failures.take()
    yield
    failures.take()


def written(db: Database) -> dict[tuple[str, str], int]:
    names = failures.DATABASE, failures.STORAGE
    with db.read() as session:
        return {(row.name, row.label): row.count for row in measures.rows(session) if row.name in names}


def change(db: Database, key: str) -> None:
    with db.write() as session:
        session.add(Meta(key=key, value=""))


def test_next_commit_writes_pending_failure_counts_once(sqlite: Database) -> None:
    failures.count(failures.DATABASE, "unavailable")
    failures.count(failures.DATABASE, "unavailable")
    change(sqlite, "first")
    change(sqlite, "second")

    assert written(sqlite) == {("database", "unavailable"): 2}


def test_failures_stay_counted_after_failed_transaction(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    failures.count(failures.STORAGE, "full")

    class Failing:
        def _execute_on_connection(self, *_: Any) -> Any:
            raise OperationalError("INSERT", {}, ConnectionError())

    with monkeypatch.context() as patch:
        patch.setattr(measures, "_CHANGE", Failing())
        with pytest.raises(DatabaseBusy):
            change(sqlite, "first")
    change(sqlite, "second")

    assert written(sqlite) == {("storage", "full"): 1, ("database", "unavailable"): 1}


def test_a_writer_that_gets_no_turn_is_a_failure_of_the_database(sqlite_url: str) -> None:
    patient, hasty = Database(sqlite_url, patience=30), Database(sqlite_url, patience=0.05)
    with patient.write(), suppress(DatabaseBusy):
        change(hasty, "late")
    change(patient, "after")

    assert written(patient) == {("database", "writer_lock"): 1}
    patient.close()
    hasty.close()


@pytest.mark.parametrize(
    ("code", "error", "reason"), [(errno.ENOSPC, StorageFull, "full"), (errno.EIO, StorageUnavailable, "unavailable")]
)
def test_storage_errors_are_counted_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], reason: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error):
        DiskStorage(tmp_path).put("a", b"x")

    assert failures.take() == {("storage", reason): 1}


def test_sessions_of_libraries_take_nothing(tmp_path: Path) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    failures.count(failures.DATABASE, "unavailable")
    engine = create_engine(f"sqlite:///{tmp_path / 'of_a_library.db'}")
    with Session(engine) as session:
        session.execute(text("CREATE TABLE t (x)"))
        session.commit()
    engine.dispose()

    assert failures.take() == {("database", "unavailable"): 1}
