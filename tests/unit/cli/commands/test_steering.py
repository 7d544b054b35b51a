"""The commands that steer a deployment, from another machine: by its routes with an admin key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app as command
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.security.keys import create_admin_key, id_of
from tests.support import sample_jobs
from tests.support.web import make_key, running_app, serve
from tests.support.worker_rows import worker_row

PACKAGED = "smollm2-135m-instruct"


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path / "there", sqlite_url, openai_aliases=True) as app:
        yield app


@pytest.fixture
def db(app: FastAPI) -> Database:
    database: Database = app.state.services.db
    return database


@pytest.fixture
def elsewhere(app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the app, and leave this machine without a data folder; return an admin key."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path / "here"))
    with app.state.services.db.write() as session:
        key = create_admin_key(session)
    with serve(app) as url:
        monkeypatch.setenv("NIGHTMILL_URL", url)
        monkeypatch.setenv("NIGHTMILL_ADMIN_KEY", key)
        yield key


def run(*words: str) -> Any:
    done = CliRunner().invoke(command, [*words])
    if isinstance(done.exception, CliError):
        raise done.exception
    assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.mark.usefixtures("elsewhere")
def test_workers_pauses_and_quarantines_are_shown(app: FastAPI, db: Database) -> None:
    make_key(app, "blue")
    with db.write() as session:
        workers.register(session, worker_row("gpu-1", "gpu.generate", "m"))
        sample_jobs.quarantined(session, PACKAGED)

    told = [run("pause", *words).stdout for words in (("worker", "gpu-1"), ("project", "blue"), ("project", "blue"))]
    shown, whole = run("workers").stdout, json.loads(run("workers", "--json").stdout)

    assert told == ["worker gpu-1 is paused\n", "project blue is paused\n", "project blue was paused already\n"]
    assert "paused: project blue" in shown
    assert f"model {PACKAGED} is quarantined until" in shown
    assert "    its log: no device" in shown
    [worker] = whole["workers"]
    assert (worker["id"], worker["state"], worker["running"]) == ("gpu-1", "paused", 0)


@pytest.mark.usefixtures("elsewhere")
def test_a_model_is_drained_and_resumed_by_its_alias(db: Database) -> None:
    job = sample_jobs.running(db, model=PACKAGED)
    sample_jobs.claim_shard(db, job.id)

    with pytest.raises(CliError, match=r"1 claims still run.*it stays paused"):
        run("drain", "model", "gpt-4o-mini", "--timeout", "0")
    names = json.loads(run("workers", "--json").stdout)["paused"][0]["aliases"]
    resumed, again = (run("resume", "model", "gpt-4o-mini").stdout for _ in range(2))

    assert "gpt-4o-mini" in names
    assert resumed == f"model {PACKAGED} (gpt-4o-mini) goes on\n"
    assert again == f"model {PACKAGED} (gpt-4o-mini) was not paused\n"
    assert "nothing runs any more" in run("drain", "queue", "io.webhooks").stdout


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("verb", ["pause", "drain", "resume"])
def test_an_unknown_name_is_an_error(verb: str) -> None:
    with pytest.raises(CliError, match="There is no model 'org/typo'"):
        run(verb, "model", "org/typo")


@pytest.mark.usefixtures("elsewhere")
def test_the_key_of_a_project_steers_nothing(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_ADMIN_KEY", make_key(app))

    with pytest.raises(CliError, match="takes an admin key"):
        run("pause", "queue", "gpu.generate")


@pytest.mark.usefixtures("elsewhere")
def test_keys_of_the_own_project_are_created_listed_and_revoked(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_key(app, manages=True)
    monkeypatch.setenv("NIGHTMILL_API_KEY", manager)

    key = run("keys", "create", "--mine").stdout.strip()
    name = key.split("_")[1]
    first, *_ = [json.loads(line) for line in run("keys", "list", "--mine", "--json").stdout.splitlines()]
    with pytest.raises(CliError, match="does not manage keys"):
        run("keys", "create", "--mine", "--api-key", key)
    told = run("keys", "revoke", "--mine", name, "--cascade").stdout

    assert (first["id"], first["created_by"]) == (name, id_of(manager))
    assert key not in run("keys", "list", "--mine").stdout
    assert told == f"revoked {name}\n"
    with pytest.raises(CliError, match="No live API key"):
        run("keys", "revoke", "--mine", name)
    rows = [json.loads(line) for line in run("audit", "list", "--target", name, "--json").stdout.splitlines()]
    assert [row["type"] for row in rows] == ["key.revoke", "key.create"]
    assert "key.revoke" in run("audit", "list").stdout


@pytest.mark.usefixtures("elsewhere")
def test_models_of_the_own_project_are_listed_with_their_states(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_API_KEY", make_key(app))

    rows = [json.loads(line) for line in run("models", "list", "--mine", "--json").stdout.splitlines()]
    serving = {row["id"]: row["serving"] for row in rows}
    [line] = [line for line in run("models", "list", "--mine").stdout.splitlines() if line.startswith(f" {PACKAGED} ")]

    assert (serving[PACKAGED]["state"], serving["gpt-4o-mini"]["model"]) == ("no_worker", PACKAGED)
    assert line.split()[:3] == [PACKAGED, PACKAGED, "gpu.generate"]
    assert "no live worker of gpu.generate serves it" in line
