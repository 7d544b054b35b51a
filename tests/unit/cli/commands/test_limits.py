"""`nightmill limits`: what a project may use, set in the database and shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from jobs.db.engine import Database
from jobs.errors import NightmillError
from jobs.security import keys

Run = Callable[..., Any]
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def run(tmp_path: Path, sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs `nightmill limits` on a database with the project `blue`."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", sqlite.url)
    monkeypatch.setenv("NIGHTMILL_OPENAI_ALIASES", "true")
    with sqlite.write() as session:
        keys.ensure_project(session, "blue")

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, ["limits", *words])
        if isinstance(done.exception, CliError | NightmillError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def shown(run: Run) -> dict[str, Any]:
    found = json.loads(run("show", "blue", "--json"))
    return {row["name"]: row["value"] for row in found["limits"]} | {row["model"]: row for row in found["models"]}


def test_limits_are_shown_until_their_removal(run: Run) -> None:
    assert shown(run) == {
        "max_bytes": None, "max_queued_tokens": None, "finetune_jobs": 20, "eval_runs": 100,
    }  # fmt: skip

    assert run("set", "blue", "max-bytes=5000", "eval_runs=7") == ("blue: max_bytes=5000, eval_runs=7\n")
    assert (shown(run)["max_bytes"], shown(run)["eval_runs"]) == (5000, 7)
    run("set", "blue", "max_bytes=none", "eval_runs=default")
    assert (shown(run)["max_bytes"], shown(run)["eval_runs"]) == (None, 100)
    table = run("show", "blue")
    assert "the project" in table.split("max_bytes")[1].splitlines()[0]


def test_limits_of_a_model_are_set_and_shown(run: Run) -> None:
    run("set", "blue", "--model", MODEL, "requests_per_minute=60", "enqueued_tokens=0")
    run("set", "blue", "--model", MODEL, "tokens_per_minute=1000", "requests_per_minute=none")

    assert shown(run)[MODEL] == {
        "model": MODEL, "requests_per_minute": None, "tokens_per_minute": 1000, "requests_per_day": None,
        "enqueued_tokens": 0,
    }  # fmt: skip
    assert MODEL in run("show", "blue")


@pytest.mark.parametrize("name", ["gpt-4o-mini", f"ft:{MODEL}:blue::1a2b3c4d"])
def test_limits_of_another_name_are_those_of_the_model_that_answers(run: Run, name: str) -> None:
    assert run("set", "blue", "--model", name, "requests_per_minute=60") == f"blue, {MODEL}: requests_per_minute=60\n"

    assert shown(run)[MODEL]["requests_per_minute"] == 60
    assert name not in shown(run)


@pytest.mark.parametrize(
    "words",
    [
        ("green", "eval_runs=1"),
        ("blue", "eval_runs"),
        ("blue", "eval_runs=0"),
        ("blue", "eval_runs=many"),
        ("blue", "unknown=1"),
        ("blue", "max_bytes=-1"),
        ("blue", "weight=2"),
        ("blue", "eval_runs=nan"),
        ("blue", "--model", MODEL, "eval_runs=1"),
        ("blue", "--model", "smolm2-135m-instruct", "requests_per_minute=1"),
        ("blue", "--model", MODEL, "requests_per_minute=1.5"),
    ],
)
def test_limit_that_is_none_is_refused_and_changes_nothing(run: Run, words: tuple[str, ...]) -> None:
    before = shown(run)

    with pytest.raises((CliError, NightmillError)):
        run("set", *words)

    assert shown(run) == before
