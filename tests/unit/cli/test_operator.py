"""The commands that work on the database directly: keys and audit."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from cli.main import app
from cli.trouble import Trouble
from jobs import audit, fleet, shards
from jobs.db import Database
from jobs.errors import NightmillError
from jobs.keys import check_key
from jobs.models import Audit, Project, Worker
from tests.support import ledgers

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


def worker(db: Database) -> None:
    facts = {"pool": "gpu", "host": "h", "pid": 1, "started": 1, "queues": ["gpu.generate"], "models": ["*"]}
    with db.write() as session:
        fleet.register(session, Worker(id="gpu-1", slots=2, state="ready", created_at=1.0, seen_at=1.0, **facts))


def test_what_is_paused_is_shown_beside_the_workers(run: Run, db: Database) -> None:
    run("keys", "create", "--project", "blue")
    worker(db)

    told = [run("pause", *words).stdout for words in (("worker", "gpu-1"), ("project", "blue"), ("project", "blue"))]
    shown = run("workers").stdout
    whole = json.loads(run("workers", "--json").stdout)

    assert told == ["worker gpu-1 is paused\n", "project blue is paused\n", "project blue was paused already\n"]
    assert whole["paused"] == [
        {"kind": "project", "name": "blue", "reason": None},
        {"kind": "worker", "name": "gpu-1", "reason": None},
    ]
    assert (whole["workers"][0]["state"], whole["workers"][0]["running"]) == ("paused", 0)
    assert "paused: project blue" in shown
    assert "gpu.generate" in shown


def test_what_is_resumed_goes_on(run: Run) -> None:
    run("pause", "queue", "gpu.generate")

    assert run("resume", "queue", "gpu.generate").stdout == "queue gpu.generate goes on\n"
    assert run("resume", "queue", "gpu.generate").stdout == "queue gpu.generate was not paused\n"
    assert json.loads(run("workers", "--json").stdout)["paused"] == []


def test_a_pause_of_a_model_holds_its_aliases_too(run: Run) -> None:
    run("pause", "model", "smollm2-135m-instruct")

    names = [one["name"] for one in json.loads(run("workers", "--json").stdout)["paused"]]
    assert {"smollm2-135m-instruct", "gpt-4o-mini"} <= set(names)
    run("resume", "model", "smollm2-135m-instruct")
    assert json.loads(run("workers", "--json").stdout)["paused"] == []


@pytest.mark.parametrize("words", [("queue", "gpu.nothing"), ("project", "nobody"), ("worker", "w-9")])
def test_a_name_that_is_not_there_is_told(run: Run, words: tuple[str, str]) -> None:
    with pytest.raises(Trouble, match=f"there is no {words[0]} '{words[1]}'"):
        run("pause", *words)


def test_a_drain_waits_for_what_runs_and_says_when_it_still_does(run: Run, db: Database) -> None:
    job = ledgers.running(db)
    claim = ledgers.claim_shard(db, job.id)

    with pytest.raises(Trouble, match="1 claims still run"):
        run("drain", "queue", "gpu.generate", "--timeout", "0")
    with db.write() as session:
        shards.give_back(session, claim)

    assert "nothing runs any more" in run("drain", "queue", "gpu.generate").stdout


def test_a_drain_waits_for_workers_to_hear_of_it_and_for_the_clients_they_answer(run: Run, db: Database) -> None:
    worker(db)
    with pytest.raises(Trouble, match=r"0 claims still run, .*; not heard from since: gpu-1; it stays paused"):
        run("drain", "worker", "gpu-1", "--timeout", "0")

    answered, over = threading.Event(), threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            work = [] if answered.is_set() else [["gpu.generate", "m", "p", 2]]
            with db.write() as session:
                fleet.beat(session, "gpu-1", unclaimed=work)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(Trouble, match="0 claims still run, and 2 clients, deliveries or removals; it stays paused"):
            run("drain", "worker", "gpu-1", "--timeout", "3")
        answered.set()
        told = run("drain", "worker", "gpu-1").stdout
    finally:
        over.set()
        beating.join()

    assert "worker gpu-1: nothing runs any more" in told


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
