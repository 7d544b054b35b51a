"""`nightmill projects`, and the options of new keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import InvalidRequest, NightmillError
from jobs.security import keys

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command on an empty database."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words])
        if isinstance(done.exception, CliError | NightmillError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done

    return run


def rows(run: Run, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*words, "--json").stdout.splitlines()]


def test_project_is_created_changed_shown_and_archived(run: Run) -> None:
    [made] = rows(run, "projects", "create", "reports", "--weight", "2", "--allow-external")
    run("projects", "update", "reports", "--name", "figures", "--no-external")

    [shown] = rows(run, "projects", "show", made["id"])
    text = run("projects", "show", "figures").stdout
    run("projects", "archive", "figures")

    assert shown == made | {"name": "figures", "allow_external": False}
    assert (shown["weight"], made["allow_external"], shown["live_keys"]) == (2, True, 0)
    assert "weight: 2" in text
    assert rows(run, "projects", "list") == []
    assert [row["archived"] is not None for row in rows(run, "projects", "list", "--archived")] == [True]
    with pytest.raises(CliError, match="no project 'figures'"):
        run("projects", "show", "figures")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("archive", "default"), "cannot be archived"),
        (("update", "default", "--name", "x"), "cannot be renamed"),
        (("create", "default"), "There is a project"),
    ],
)
def test_default_project_stays(run: Run, db: Database, words: tuple[str, ...], message: str) -> None:
    with db.write() as session:
        keys.ensure_project(session, "default")

    with pytest.raises(InvalidRequest, match=message):
        run("projects", *words)

    assert [row["name"] for row in rows(run, "projects", "list")] == ["default"]


def test_new_key_has_the_name_scopes_and_end_that_are_given(run: Run) -> None:
    words = ("--name", "ci", "--scope", "api.files.read", "--scope", "api.batch.write", "--expires", "30d")
    run("keys", "create", "--project", "reports", *words)

    [row] = rows(run, "keys", "list")

    assert (row["name"], row["scopes"]) == ("ci", ["api.files.read", "api.batch.write"])
    assert row["expires"] == pytest.approx(now() + 30 * 86_400, abs=60)


@pytest.mark.parametrize("time", ["30", "0d", "366d", "1w", "-1d", ""])
def test_lifetime_that_is_not_understood_creates_no_key(run: Run, time: str) -> None:
    with pytest.raises(CliError, match="--expires takes hours or days"):
        run("keys", "create", "--admin", f"--expires={time}")

    assert rows(run, "keys", "list") == []


def test_old_option_of_the_operator_names_the_new_option(run: Run) -> None:
    with pytest.raises(CliError, match="use --admin in place of --operator"):
        run("keys", "create", "--operator")
