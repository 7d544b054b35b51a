"""`nightmill budgets`: what is shown, set and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from jobs.clock import now
from jobs.db.engine import Database
from jobs.security.keys import ensure_project
from jobs.usage.budgets import MICROS_PER_CENT
from jobs.usage.minutes import month_of
from jobs.usage.tables import Price, Spend, SpendAlert, SpendLimit

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command on a database with the project `blue`, and returns what it prints."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", sqlite.url)
    with sqlite.write() as session:
        project = ensure_project(session, "blue")
        session.add(Spend(project_id=project.id, month=month_of(now()), amount=150 * MICROS_PER_CENT))
        for kind in ("input", "output"):
            session.add(Price(model="all-minilm-l6-v2", kind=kind, since=1, usd_per_million=1.0, created_at=1.0))

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["budgets", *words])
        if isinstance(done.exception, CliError):
            raise done.exception
        return done.stdout

    return run


def rows(run: Run) -> dict[str, Any]:
    return {row["project"]: row for row in map(json.loads, run("show", "--json").splitlines())}


def test_limits_are_set_shown_and_removed(run: Run, sqlite: Database) -> None:
    assert run("set", "blue", "--cents", "150") == "blue: at most $1.50 a month\n"
    run("set", "organization", "--cents", "20000")

    assert rows(run) == {
        "blue": {"project": "blue", "spent": 1.5, "reserved": 0.0, "limit": 1.5, "exhausted": True},
        "organization": {"project": "organization", "spent": 1.5, "reserved": 0.0, "limit": 200.0, "exhausted": False},
    }

    assert run("set", "blue", "--none") == "blue: no spend limit\n"
    assert rows(run)["blue"]["limit"] is None
    with sqlite.read() as session:
        assert session.scalars(select(SpendLimit.project_id)).all() == [""]


def test_models_without_a_price_are_named(run: Run) -> None:
    shown = run("show")

    assert "without a price" in shown
    assert "all-minilm-l6-v2" not in shown


def test_alert_is_created(run: Run, sqlite: Database) -> None:
    assert run("alert", "blue", "--cents", "99", "--email", "a@example.com").endswith(": $0.99 a month\n")

    with sqlite.read() as session:
        [alert] = session.scalars(select(SpendAlert))
    assert (alert.cents, alert.recipients) == (99, ["a@example.com"])


@pytest.mark.parametrize(
    "words", [("set", "red", "--cents", "1"), ("set", "blue"), ("set", "blue", "--cents", "1", "--none")]
)
def test_wrong_command_changes_nothing(run: Run, sqlite: Database, words: tuple[str, ...]) -> None:
    with pytest.raises(CliError):
        run(*words)
    with sqlite.read() as session:
        assert session.scalars(select(SpendLimit)).all() == []
