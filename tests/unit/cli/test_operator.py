"""The commands that work on the database directly: keys and audit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from cli.main import app
from cli.trouble import Trouble
from jobs import audit
from jobs.db import Database
from jobs.errors import NightmillError
from jobs.keys import check_key
from jobs.models import Audit, Project

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, on an empty database."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words])
        if isinstance(done.exception, Trouble | NightmillError):
            raise done.exception
        return done

    return run


def test_a_new_key_stands_alone_on_standard_output_and_opens_the_server(run: Run, db: Database) -> None:
    done = run("keys", "create", "--project", "blue")

    key = done.stdout.strip()
    assert done.stdout == f"{key}\n"
    with db.read() as session:
        assert check_key(session, key) is not None


def test_keys_are_listed_without_themselves(run: Run) -> None:
    key = run("keys", "create", "--project", "blue").stdout.strip()

    told = run("keys", "list").stdout
    (row,) = json.loads(run("keys", "list", "--json").stdout)

    assert row["project"] == "blue"
    assert row["id"] in told
    assert key not in told


def test_a_revoked_key_opens_nothing(run: Run, db: Database) -> None:
    key = run("keys", "create", "--project", "blue").stdout.strip()
    (row,) = json.loads(run("keys", "list", "--json").stdout)

    run("keys", "revoke", row["id"])

    with db.read() as session:
        assert check_key(session, key) is None
    with pytest.raises(Trouble, match="no live key"):
        run("keys", "revoke", row["id"])


def test_a_folder_without_a_database_is_told_and_none_is_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTMILL_DATABASE_URL")
    empty = tmp_path / "empty"

    with pytest.raises(Trouble, match="there is no Nightmill database"):
        run("keys", "list", "--data-dir", str(empty))

    assert not empty.exists()


def test_an_intact_audit_log_shows_the_head_that_proves_it_later(run: Run, db: Database) -> None:
    run("keys", "create", "--project", "blue")
    _seal(db)
    told = run("audit", "verify").stdout
    head = told.split()[-1]

    run("keys", "create", "--project", "red")
    _seal(db)
    later = run("audit", "verify", "--anchor", head)

    assert "intact: 1 rows" in told
    assert "intact: 2 rows" in later.stdout


def test_a_changed_row_of_the_audit_log_is_found(run: Run, db: Database) -> None:
    run("keys", "create", "--project", "blue")
    _seal(db)
    with db.write() as session:
        session.execute(update(Audit).values(actor="nobody"))

    with pytest.raises(Trouble, match="not intact: 1 fault"):
        run("audit", "verify")


def test_an_anchor_that_is_none_is_told(run: Run) -> None:
    with pytest.raises(Trouble, match="is no anchor"):
        run("audit", "verify", "--anchor", "12:abc")


def _seal(db: Database) -> None:
    with db.write() as session:
        audit.seal(session)


def test_a_project_may_be_allowed_models_outside_and_denied_them_again(run: Run, db: Database) -> None:
    def allowed() -> bool | None:
        with db.read() as session:
            return session.scalar(select(Project.allow_external).where(Project.name == "blue"))

    seen = []
    for words in ([], ["--allow-external"], [], ["--no-external"]):
        run("keys", "create", "--project", "blue", *words)
        seen.append(allowed())

    assert seen == [False, True, True, False]
