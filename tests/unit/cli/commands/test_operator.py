"""The commands that work on the database directly: keys and audit."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, make_url, select, update
from sqlalchemy.orm import InstrumentedAttribute
from typer.testing import CliRunner

from cli.client.progress import Snapshot
from cli.commands.explain import _describe_quarantine
from cli.errors import CliError
from cli.main import app
from jobs.db.engine import Database
from jobs.errors import NightmillError, NotFound
from jobs.files.tables import File
from jobs.fleet import workers
from jobs.ledger import anchors, audit, pauses, shards, totals
from jobs.ledger.tables import Audit, AuditHead
from jobs.security.keys import check_key, create_key, id_of, list_keys
from jobs.security.tables import Project
from tests.support import sample_jobs
from tests.support.worker_rows import worker_row

Run = Callable[..., Any]
PACKAGED = "smollm2-135m-instruct"


@pytest.fixture
def run(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command on an empty database."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)
    monkeypatch.setenv("NIGHTMILL_OPENAI_ALIASES", "true")

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words])
        if isinstance(done.exception, CliError | NightmillError):
            raise done.exception
        return done

    return run


def test_a_new_key_stands_alone_on_standard_output_and_opens_the_server(run: Run, db: Database) -> None:
    done = run("keys", "create", "--project", "blue")

    key = done.stdout.strip()
    assert done.stdout == f"{key}\n"
    with db.read() as session:
        assert check_key(session, key) is not None


def test_the_stored_bytes_of_each_project_are_shown(run: Run, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_PROJECT_MAX_BYTES", str(5 << 20))
    run("keys", "create", "--project", "blue")
    run("keys", "create", "--project", "red")
    facts = {"purpose": "batch", "filename": "f", "path": "files/f", "created_at": 1.0, "bytes": 3 << 20}
    with db.write() as session:
        blue = session.scalars(select(Project.id).where(Project.name == "blue")).one()
        session.add(File(id="file-1", project_id=blue, **facts))

    told = run("usage", "bytes").stdout
    rows = [json.loads(line) for line in run("usage", "bytes", "--json").stdout.splitlines()]

    assert [(row["project"], row["files"], row["limit"]) for row in rows] == [
        ("blue", 3 << 20, 5 << 20),
        ("red", 0, 5 << 20),
    ]
    assert "3.0" in told
    assert "5.0" in told


def test_an_admin_key_belongs_to_no_project(run: Run, db: Database) -> None:
    key = run("keys", "create", "--admin").stdout.strip()

    row = json.loads(run("keys", "list", "--json").stdout)

    assert (row["project"], row["admin"]) == (None, True)
    assert "(admin)" in run("keys", "list").stdout
    with db.read() as session:
        stored = check_key(session, key)
        assert stored is not None
        assert stored.is_admin


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--admin", "--project", "blue"),
        ("--admin", "--allow-external"),
        ("--project", " "),
        ("--admin", "--mine"),
        ("--admin", "--manage"),
        ("--mine", "--manage"),
        ("--mine", "--project", "blue"),
        ("--mine", "--no-external"),
    ],
)
def test_a_key_is_of_a_project_or_an_admin_key(run: Run, words: tuple[str, ...]) -> None:
    with pytest.raises(CliError, match="project"):
        run("keys", "create", *words)

    assert run("keys", "list", "--json").stdout == ""


def test_keys_are_listed_without_themselves(run: Run) -> None:
    key = run("keys", "create", "--project", "blue").stdout.strip()

    told = run("keys", "list").stdout
    row = json.loads(run("keys", "list", "--json").stdout)

    assert row["project"] == "blue"
    assert row["project_id"].startswith("proj_")
    assert row["id"] in told
    assert key not in told


def worker(db: Database) -> None:
    with db.write() as session:
        workers.register(session, worker_row("gpu-1", "gpu.generate", "*"))


def test_workers_command_lists_pauses(run: Run, db: Database) -> None:
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


def test_workers_command_shows_loading_engines(run: Run, db: Database) -> None:
    worker(db)
    how = {"entry": "e", "up": False, "since": 1.0, "phase": "reading the weights"}
    with db.write() as session:
        workers.heartbeat(session, "gpu-1", state="starting", engines={PACKAGED: how})

    told, (row,) = run("workers").stdout, json.loads(run("workers", "--json").stdout)["workers"]

    assert f"starting; loading {PACKAGED} (reading the weights), " in " ".join(told.split())
    assert row["loading"] == [{"model": PACKAGED, "phase": "reading the weights", "since": 1.0}]


def test_resume_removes_pause(run: Run) -> None:
    run("pause", "queue", "gpu.generate")

    assert run("resume", "queue", "gpu.generate").stdout == "queue gpu.generate goes on\n"
    assert run("resume", "queue", "gpu.generate").stdout == "queue gpu.generate was not paused\n"
    assert json.loads(run("workers", "--json").stdout)["paused"] == []


def test_a_pause_of_a_model_holds_its_aliases_too(run: Run) -> None:
    run("pause", "model", "smollm2-135m-instruct")

    assert {"smollm2-135m-instruct", "gpt-4o-mini"} <= paused(run)
    run("resume", "model", "smollm2-135m-instruct")
    assert paused(run) == set()


def test_paused_model_is_listed_once_with_its_aliases(run: Run, db: Database) -> None:
    run("pause", "model", "gpt-4o-mini")
    with db.write() as session:
        pauses.pause(session, pauses.Scope.MODEL, "left", actor="operator")

    told = [line for line in run("workers").stdout.splitlines() if line.startswith("paused: ")]
    left, model = json.loads(run("workers", "--json").stdout)["paused"]
    rows = {row["name"]: row["state"] for row in map(json.loads, run("models", "list", "--json").stdout.splitlines())}

    assert [line.partition(" (also as ")[0] for line in told] == ["paused: model left", f"paused: model {PACKAGED}"]
    assert "gpt-4o, gpt-4o-mini" in told[1]
    assert (left["name"], left["aliases"], model["name"]) == ("left", [], PACKAGED)
    assert "gpt-5" in model["aliases"]
    assert rows == {PACKAGED: "paused", "all-minilm-l6-v2": "no worker"}


def paused(run: Run) -> set[str]:
    found = json.loads(run("workers", "--json").stdout)["paused"]
    return {name for one in found for name in (one["name"], *one.get("aliases", ()))}


def test_drain_and_resume_resolve_model_alias(run: Run, db: Database) -> None:
    job = sample_jobs.running(db, model=PACKAGED)
    sample_jobs.claim_shard(db, job.id)
    with db.write() as session:
        sample_jobs.quarantined(session, PACKAGED)

    with pytest.raises(CliError, match="1 claims still run"):
        run("drain", "model", "gpt-4o-mini", "--timeout", "0")
    held = paused(run)
    freed, again = (run("resume", "model", "gpt-4o-mini").stdout for _ in range(2))

    assert {PACKAGED, "gpt-4o-mini", "gpt-4o"} <= held
    assert freed == f"model {PACKAGED} (gpt-4o-mini) is no longer quarantined\n"
    assert again == f"model {PACKAGED} (gpt-4o-mini) was not paused\n"
    assert json.loads(run("workers", "--json").stdout)["quarantined"] == []
    assert paused(run) == set()


@pytest.mark.parametrize("verb", ["pause", "drain", "resume"])
def test_unknown_model_is_reported_and_leaves_no_pause(run: Run, verb: str) -> None:
    with pytest.raises(NotFound, match=f"There is no model '{PACKAGED}-typo'"):
        run(verb, "model", f"{PACKAGED}-typo")

    assert paused(run) == set()


def test_a_model_outside_the_models_file_is_paused_if_anything_knows_it(run: Run, db: Database) -> None:
    sample_jobs.running(db, model="asked")
    with db.write() as session:
        sample_jobs.quarantined(session, "dead")
        pauses.pause(session, pauses.Scope.MODEL, "left", actor="operator")
        workers.store_models(session, {"shown": False, "gpt-4o": False}, "gpu.generate")

    for name in ("asked", "dead", "shown", "gpt-4o"):  # an endpoint's own model comes before an alias
        assert run("pause", "model", name).stdout == f"model {name} is paused\n"
    assert paused(run) == {"asked", "dead", "left", "shown", "gpt-4o"}
    assert run("resume", "model", "left").stdout == "model left goes on\n"
    with pytest.raises(NotFound, match="There is no model 'left'"):
        run("resume", "model", "left")
    worker(db)  # its endpoint takes any name
    assert run("pause", "model", "left").stdout == "model left is paused\n"


def test_a_quarantined_model_is_shown_with_its_reason_and_freed_by_its_alias_too(run: Run, db: Database) -> None:
    for model in (PACKAGED, "another"):
        with db.write() as session:
            sample_jobs.quarantined(session, model)

    shown, whole = run("workers").stdout, json.loads(run("workers", "--json").stdout)["quarantined"]
    told = [run("resume", "model", PACKAGED).stdout for _ in range(2)]
    left = json.loads(run("workers", "--json").stdout)["quarantined"]

    assert f"model {PACKAGED} is quarantined until" in shown
    assert "    in flight then: batch_1 shard 0 (2 times)" in shown
    assert "    its log: no device" in shown
    assert [(one["model"], one["host_devices"], one["deaths"]) for one in whole] == [
        ("another", "h", 2),
        (PACKAGED, "h", 2),
    ]
    assert told == [f"model {PACKAGED} is no longer quarantined\n", f"model {PACKAGED} was not paused\n"]
    assert [one["model"] for one in left] == ["another"]


def test_explain_says_of_a_job_that_waits_for_its_model_why_that_is_quarantined(run: Run, db: Database) -> None:
    run("keys", "list")
    ours = sample_jobs.submitted(db).id
    with db.write() as session:
        sample_jobs.quarantined(session, PACKAGED)

    said = {
        (model, waits): [*_describe_quarantine(Snapshot.of(_job(model, waits, ours)), None)]
        for model in (PACKAGED, "gpt-4o-mini", "another")
        for waits in ("waiting_for_model", "waiting_for_pause")
    }

    assert [key for key, lines in said.items() if lines] == [
        (name, "waiting_for_model") for name in (PACKAGED, "gpt-4o-mini")
    ]
    lines = said["gpt-4o-mini", "waiting_for_model"]
    assert "its engine died 2 times, last of: it did not come up" in lines[0]
    assert lines[-1].endswith(f"`nightmill resume model {PACKAGED}`")
    assert not [*_describe_quarantine(Snapshot.of(_job(PACKAGED, "waiting_for_model", "batch_of_elsewhere")), None)]


def _job(model: str, waits: str, job_id: str) -> dict[str, Any]:
    return {
        "id": job_id, "kind": "generation", "state": "running", "created_at": 0,
        "model": model, "waiting_for": waits,
        "progress": {"total": 1, "completed": 0, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
    }  # fmt: skip


def test_the_doctor_finds_a_quarantined_model_broken(run: Run, db: Database) -> None:
    with db.write() as session:
        sample_jobs.quarantined(session, PACKAGED)

    done = run("doctor", "--json")

    found = {one["check"]: one for one in map(json.loads, done.stdout.splitlines())}[f"engine of {PACKAGED}"]
    assert (done.exit_code, found["health"]) == (1, "broken")
    assert "its log: no device" in found["message"]
    assert f"nightmill resume model {PACKAGED}" in found["fix"]


@pytest.mark.parametrize("words", [("queue", "gpu.nothing"), ("project", "nobody"), ("worker", "w-9")])
def test_unknown_pause_target_is_reported(run: Run, words: tuple[str, str]) -> None:
    with pytest.raises(NotFound, match=f"There is no {words[0]} '{words[1]}'"):
        run("pause", *words)


def test_invalid_models_file_does_not_prevent_pauses_of_other_scopes(run: Run, tmp_path: Path, db: Database) -> None:
    run("keys", "create", "--project", "blue")
    worker(db)
    (tmp_path / "models.yaml").write_text("models: {")

    for words in (("worker", "gpu-1"), ("project", "blue"), ("queue", "io.webhooks")):
        assert run("pause", *words).stdout == f"{' '.join(words)} is paused\n"
        assert run("resume", *words).stdout == f"{' '.join(words)} goes on\n"


def test_a_queue_is_known_by_its_workers_and_by_its_pause(run: Run, db: Database) -> None:
    with db.write() as session:
        workers.register(session, worker_row("gpu-1", "gpu.odd"))

    assert run("pause", "queue", "gpu.odd").stdout == "queue gpu.odd is paused\n"
    with db.write() as session:
        workers.leave(session, "gpu-1")
    assert run("resume", "queue", "gpu.odd").stdout == "queue gpu.odd goes on\n"


@pytest.mark.parametrize("words", [("pause", "model", "m"), ("pause", "queue", "gpu.m"), ("models", "list")])
@pytest.mark.usefixtures("run")
def test_invalid_models_file_is_reported_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    (tmp_path / "models.yaml").write_text("models: {a: 3}")

    with pytest.raises(SystemExit) as ended:
        app([*words])

    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"nightmill: {tmp_path / 'models.yaml'}, line 1: models.a: ")


def test_drain_waits_for_claims_and_reports_remaining_claims(run: Run, db: Database) -> None:
    job = sample_jobs.running(db)
    claim = sample_jobs.claim_shard(db, job.id)

    with pytest.raises(CliError, match="1 claims still run"):
        run("drain", "queue", "gpu.generate", "--timeout", "0")
    with db.write() as session:
        shards.release(session, claim)

    assert "nothing runs any more" in run("drain", "queue", "gpu.generate").stdout


def test_drain_waits_for_worker_heartbeats_and_interactive_clients(run: Run, db: Database) -> None:
    worker(db)
    with pytest.raises(CliError, match=r"0 claims still run, .*; not heard from since: gpu-1; it stays paused"):
        run("drain", "worker", "gpu-1", "--timeout", "0")

    answered, over = threading.Event(), threading.Event()

    def heartbeat() -> None:
        while not over.wait(0.05):
            work = [] if answered.is_set() else [["gpu.generate", "m", "p", 2]]
            with db.write() as session:
                workers.heartbeat(session, "gpu-1", other_work=work)

    renewing = threading.Thread(target=heartbeat)
    renewing.start()
    try:
        with pytest.raises(
            CliError, match="0 claims still run, and 2 clients, deliveries or removals; it stays paused"
        ):
            run("drain", "worker", "gpu-1", "--timeout", "3")
        answered.set()
        told = run("drain", "worker", "gpu-1").stdout
    finally:
        over.set()
        renewing.join()

    assert "worker gpu-1: nothing runs any more" in told


def test_a_revoked_key_opens_nothing(run: Run, db: Database) -> None:
    key = run("keys", "create", "--project", "blue").stdout.strip()
    row = json.loads(run("keys", "list", "--json").stdout)

    run("keys", "revoke", row["id"])

    with db.read() as session:
        assert check_key(session, key) is None
    with pytest.raises(CliError, match="no live key"):
        run("keys", "revoke", row["id"])


def test_revocation_lists_created_keys_and_cascade_revokes_all(run: Run, db: Database) -> None:
    manager = id_of(run("keys", "create", "--project", "blue", "--manage").stdout.strip())
    with db.write() as session:
        created = id_of(create_key(session, "blue", created_by=manager))
    rows = {row["id"]: row for row in map(json.loads, run("keys", "list", "--json").stdout.splitlines())}

    told = run("keys", "revoke", manager).stdout
    cascaded = run("keys", "revoke", manager, "--cascade", "--json").stdout

    assert [(rows[name]["manages_keys"], rows[name]["created_by"]) for name in (manager, created)] == [
        (True, None), (False, manager),
    ]  # fmt: skip
    assert f"keys that it created stay live without --cascade: {created}\n" in told
    assert json.loads(cascaded) == {"id": manager, "revoked": True, "created_keys": [created]}
    with db.read() as session:
        assert all(key.revoked_at for key, _ in list_keys(session))


def test_missing_database_is_reported_and_not_created(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTMILL_DATABASE_URL")
    empty = tmp_path / "empty"

    with pytest.raises(CliError, match="there is no Nightmill database"):
        run("keys", "list", "--data-dir", str(empty))

    assert not empty.exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg://u:sesame@127.0.0.1:9/x?password=sesame", r"u:\*\*\*@127\.0\.0\.1:9/x cannot be asked: "),
        ("postgresql+psycopg://u:sesame@/x?host=/nowhere&odd=sesame", r"@/x\?host=%2Fnowhere cannot be asked: "),
        ("sqlite:////dev/null/sesame", "there is no Nightmill database at "),
        *((url, "^NIGHTMILL_DATABASE_URL names no database") for url in (
            "sesame", "nothing://u:sesame@h/x", "oracle://u:sesame@h/x", "postgresql+psycopg://u:sesame@h:sesame/x",
        )),
    ],
)  # fmt: skip
def test_unreachable_database_is_reported_without_password(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", url)

    with pytest.raises(CliError, match=told) as trouble:
        run("keys", "list")

    assert url.startswith("sqlite") or "sesame" not in str(trouble.value)


def test_invalid_database_file_is_reported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.db").write_text("nothing")
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", f"sqlite:///{tmp_path / 'odd.db'}")

    with pytest.raises(CliError, match=r"odd\.db cannot be asked: file is not a database$"):
        run("keys", "list")


def test_authentication_failure_is_reported_without_password(
    run: Run, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(postgres_url).set(username="nobody", password="sesame")
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", url.render_as_string(hide_password=False))

    with pytest.raises(CliError, match="cannot be asked: ") as trouble:
        run("keys", "list")

    assert "sesame" not in str(trouble.value)


def test_the_doctor_finds_a_url_that_names_no_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", "sesame")

    found = json.loads(run("doctor", "--json").stdout)

    assert (found["check"], found["health"]) == ("settings", "broken")
    assert "sesame" not in str(found)


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


def test_audit_verification_reports_rows_removed_by_retention(run: Run, db: Database) -> None:
    for project in ("blue", "red", "green"):
        run("keys", "create", "--project", project)
    _seal(db)
    first = run("audit", "verify").stdout.split()[-1]
    run("keys", "create", "--project", "white")
    _seal(db)
    with db.write() as session:
        totals.count(session)
        audit.remove_oldest(session, "", 4e9)

    told = run("audit", "verify", "--anchor", first).stdout
    assert "intact: 1 rows; retention has removed the 3 rows before them" in told
    assert "agrees with 1 anchors; rows after 3" in told, "the last removed row still has its hash"
    assert told.split()[-1].startswith("4:")
    shown = json.loads(run("audit", "verify", "--json").stdout)
    assert (shown["rows"], shown["removed"]) == (1, 3)


def test_a_changed_row_of_the_audit_log_is_found(run: Run, db: Database) -> None:
    run("keys", "create", "--project", "blue")
    _seal(db)
    with db.write() as session:
        session.execute(update(Audit).values(actor="nobody"))

    with pytest.raises(CliError, match="not intact: 1 fault"):
        run("audit", "verify")


def test_a_recomputed_audit_log_is_found_with_the_anchors_of_a_file_alone(
    run: Run, db: Database, tmp_path: Path
) -> None:
    run("keys", "create", "--project", "blue")
    _seal(db)
    file = tmp_path / "anchors.jsonl"
    with db.write() as session:
        anchors.append(file, anchors.begin(session))
    assert "agrees with 1 anchors" in run("audit", "verify", "--anchors", str(file)).stdout

    with db.write() as session:
        session.execute(update(Audit).values(actor="nobody", seal=None, hash=None))
        session.execute(delete(AuditHead))
    _seal(db)

    assert "cannot be told from an intact one" in run("audit", "verify").stdout
    with pytest.raises(CliError, match="not intact"):
        run("audit", "verify", "--anchors", str(file))


def test_a_log_that_was_recomputed_as_a_whole_is_found_with_the_audit_key(run: Run, db: Database) -> None:
    run("keys", "create", "--project", "blue")
    _seal(db)
    assert "this host has no audit key" in run("audit", "verify").stdout
    assert run("audit", "sign").stdout == "the audit log is signed as it is: 1 rows\n"
    assert "rows up to 1 are signed with the audit key" in run("audit", "verify").stdout
    assert json.loads(run("audit", "verify", "--json").stdout)["signed"] == 1

    with db.write() as session:
        session.execute(update(Audit).values(actor="nobody", seal=None, hash=None))
        session.execute(update(AuditHead).values(seal=0, hash=audit.GENESIS))
    _seal(db)

    with pytest.raises(CliError, match="not intact"):
        run("audit", "verify")


def test_invalid_anchor_file_is_reported(run: Run, db: Database, tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    file.write_text("12:abc\n")

    with pytest.raises(CliError, match="no file of anchors"):
        run("audit", "verify", "--anchors", str(file))


def test_invalid_anchor_is_reported(run: Run) -> None:
    with pytest.raises(CliError, match="is not an anchor"):
        run("audit", "verify", "--anchor", "12:abc")


def _seal(db: Database) -> None:
    with db.write() as session:
        audit.seal(session)


@pytest.mark.parametrize(
    ("column", "name"), [(Project.allow_external, "external"), (Project.allow_media_urls, "media-urls")]
)
def test_external_access_of_project_is_allowed_and_forbidden(
    run: Run, db: Database, column: InstrumentedAttribute[bool], name: str
) -> None:
    def allowed() -> bool | None:
        with db.read() as session:
            return session.scalar(select(column).where(Project.name == "blue"))

    seen = []
    for words in ([], [f"--allow-{name}"], [], [f"--no-{name}"]):
        run("keys", "create", "--project", "blue", *words)
        seen.append(allowed())

    assert seen == [False, True, True, False]
    with db.read() as session:
        details = session.scalars(select(Audit.details).where(Audit.action == "project.update").order_by(Audit.id))
        assert details.all() == [{column.key: True}, {column.key: False}]
    with pytest.raises(CliError, match="need a --project"):
        run("keys", "create", "--admin", f"--allow-{name}")
