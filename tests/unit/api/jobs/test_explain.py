"""The explanation of a job: why it waits, which errors it has, and how its answers ended."""

import json
import shlex
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update
from typer.main import get_command

from cli.main import app as command
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.ledger.tables import Job, Outbox
from jobs.platform.storage import Storage
from jobs.retrieval.tables import VectorStoreFile
from tests.support import sample_jobs, worker_steps
from tests.support.worker_rows import worker_row
from tests.unit.api.batches.test_batches import create

PACKAGED = "smollm2-135m-instruct"


@pytest.fixture
def db(app: FastAPI) -> Database:
    database: Database = app.state.services.db
    return database


@pytest.fixture
def storage(app: FastAPI) -> Storage:
    store: Storage = app.state.services.storage
    return store


def explained(client: TestClient, job_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/jobs/{job_id}/explain")
    assert answer.status_code == 200, answer.text
    explanation: dict[str, Any] = answer.json()
    assert (explanation["object"], explanation["job_id"]) == ("job.explanation", job_id)
    return explanation


def codes(explanation: dict[str, Any]) -> list[tuple[str, str]]:
    return [(reason["type"], reason["code"]) for reason in explanation["reasons"]]


def result(custom_id: str, reason: str = "stop", content: str = "yes") -> bytes:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content}}
    response = {"status_code": 200, "body": {"choices": [choice]}}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None}).encode()


def failure(custom_id: str, code: str) -> bytes:
    error = {"code": code, "message": "It broke."}
    return json.dumps({"custom_id": custom_id, "response": None, "error": error}).encode()


def change(db: Database, job_id: str, **values: Any) -> None:
    with db.write() as session:
        job = session.get_one(Job, job_id)
        for name, value in values.items():
            setattr(job, name, value)


def register_worker(db: Database) -> None:
    with db.write() as session:
        workers.register(session, worker_row("w", "cpu.plan", "*", pool="cpu", slots=1, seen_at=now()))


def test_explanation_of_queued_job_names_missing_worker(client: TestClient) -> None:
    explanation = explained(client, create(client)["id"])

    assert codes(explanation) == [("wait", "no_worker")]
    assert explanation["text"] == "no live worker of cpu.plan; `nightmill workers` lists the live workers"


def test_a_job_behind_others_has_a_position(client: TestClient, db: Database) -> None:
    register_worker(db)
    create(client)

    explanation = explained(client, create(client)["id"])

    assert [(reason["code"], reason["count"]) for reason in explanation["reasons"]] == [("queue_position", 1)]


def test_an_overdue_message_is_blamed_on_the_missing_dispatcher(client: TestClient, db: Database) -> None:
    job_id = create(client)["id"]
    register_worker(db)
    with db.write() as session:
        session.execute(update(Outbox).values(due_at=now() - 90))

    assert codes(explained(client, job_id)) == [("wait", "not_published"), ("wait", "no_dispatcher")]


def test_a_claimed_job_runs(client: TestClient, db: Database) -> None:
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 2)
    worker_steps.take(db, job_id)

    assert codes(explained(client, job_id)) == [("wait", "running")]


def test_a_job_that_waits_for_another_names_it(client: TestClient) -> None:
    first = create(client)["id"]
    second = create(client, after=[first])["id"]

    [reason] = explained(client, second)["reasons"]

    assert (reason["code"], reason["examples"]) == ("waiting_for_job", [f"{first} (embedding): queued"])


def test_a_job_that_waits_for_a_worker_names_its_queue(client: TestClient, db: Database) -> None:
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 1)
    change(db, job_id, waiting_for="worker", queue="gpu.finetune")

    [reason] = explained(client, job_id)["reasons"]

    assert reason["code"] == "waiting_for_worker"
    assert reason["message"].startswith("no live worker of gpu.finetune;")


def test_a_quarantined_model_is_named_without_the_log_and_the_lines_of_others(client: TestClient, db: Database) -> None:
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 1, model=PACKAGED)
    change(db, job_id, waiting_for="model")
    with db.write() as session:
        sample_jobs.quarantined(session, PACKAGED)

    explanation = explained(client, job_id)

    assert codes(explanation) == [("wait", "waiting_for_model"), ("wait", "model_quarantined")]
    assert explanation["reasons"][1]["advice"].endswith(f"`nightmill resume model {PACKAGED}`")
    assert "no device" not in explanation["text"]
    assert "batch_1 shard" not in explanation["text"]


def test_errors_of_the_input_are_counted_by_code(client: TestClient, db: Database) -> None:
    job_id = create(client)["id"]
    error = {"code": "missing", "message": "No body.", "param": "body"}
    odd = {"code": "odd", "message": "Odd.", "line": None, "param": None}
    worker_steps.fail(db, job_id, [{**error, "line": 1}, odd, *({**error, "line": n} for n in range(2, 6))])

    explanation = explained(client, job_id)

    assert [(reason["code"], reason["count"]) for reason in explanation["reasons"]] == [("missing", 5), ("odd", 1)]
    assert explanation["text"].splitlines() == [
        "5 x missing",
        *(f"    line {n}: No body. (body)" for n in (1, 2, 3)),
        "1 x odd",
        "    Odd.",
    ]


def test_permanent_errors_are_retried_with_other_fields(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = create(client, endpoint="/v1/completions")["id"]
    body = {"error": {"code": "context_length_exceeded", "message": "Too long."}}
    refused = {"custom_id": "a", "response": {"status_code": 400, "body": body}, "error": None}
    worker_steps.end(db, storage, job_id, [], [json.dumps(refused).encode()], {"error:context_length_exceeded": 1})

    (reason,) = explained(client, job_id)["reasons"]

    assert (reason["code"], reason["is_permanent"]) == ("context_length_exceeded", True)
    assert reason["advice"].startswith("the same requests fail again")


def test_answers_and_failures_of_an_ended_job_have_examples(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = create(client, endpoint="/v1/completions")["id"]
    answers = [result("a"), result("b", "length", "and then"), result("c", "stop", " ")]
    outcomes = {"stop": 2, "length": 1, "empty": 1, "error:engine_error": 1}
    worker_steps.end(db, storage, job_id, answers, [failure("d", "engine_error")], outcomes)

    explanation = explained(client, job_id)

    assert codes(explanation) == [
        ("answers", "finish_reasons"), ("answers", "empty"), ("answers", "length"), ("failure", "engine_error"),
    ]  # fmt: skip
    ended, empty, cut, failed = explanation["reasons"]
    assert (ended["message"], ended["examples"]) == ("answers ended by length (1), stop (2)", ["length: b: and then"])
    assert (empty["count"], empty["examples"]) == (1, ["c"])
    assert (failed["count"], failed["examples"]) == (1, ["d: It broke."])
    assert failed["advice"] == f"`nightmill retry {job_id}` runs these again as a new job"
    assert (failed["is_permanent"], ended["is_permanent"]) == (False, None)
    assert _parsed(cut["advice"]) == (job_id, "length", {"max_tokens": 4096})


def _parsed(advice: str) -> tuple[str, str, Any]:
    """Return what the command in `advice` would be given, read by the command itself."""
    _, name, *words = shlex.split(advice)
    group: Any = get_command(command)
    given = group.commands[name].make_context(name, words).params
    return given["job"], given["which"], json.loads(given["override"])


def test_lines_of_a_live_job_are_examples_too(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 3)
    worker_steps.answer(db, storage, worker_steps.take(db, job_id), [0, 1], cut_off=1)

    explanation = explained(client, job_id)

    assert codes(explanation) == [("answers", "finish_reasons"), ("answers", "length")]
    assert explanation["reasons"][1]["advice"] == "`nightmill retry`, when this job has ended"


def test_without_the_files_the_counts_stand_alone(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = create(client)["id"]
    worker_steps.end(db, storage, job_id, [result("a", "length")], outcomes={"length": 1})
    with db.read() as session:
        file_id = session.get_one(Job, job_id).output_file_id
    client.delete(f"/v1/files/{file_id}")

    explanation = explained(client, job_id)

    assert explanation["reasons"][0]["message"] == "answers ended by length (1)"
    assert explanation["reasons"][0]["examples"] == []


def test_files_that_failed_to_come_into_a_store_are_examples(
    client: TestClient, db: Database, storage: Storage
) -> None:
    job_id = create(client)["id"]
    worker_steps.end(db, storage, job_id, [], [b"{}"], {"error:no_text": 1})
    file = {
        "id": "file-1", "store_id": "vs_1", "project_id": "p", "filename": "f", "status": "failed", "created_at": 1.0,
        "chunking": {}, "error_code": "no_text", "error_message": "No text.", "job_id": job_id, "line": 0,
        "version": "1",
    }  # fmt: skip
    with db.write() as session:
        session.add(VectorStoreFile(**file))
        job = session.get_one(Job, job_id)
        job.payload = {**job.payload, "store_id": "vs_1"}

    [reason] = explained(client, job_id)["reasons"]

    assert (reason["code"], reason["examples"]) == ("no_text", ["file-1: No text."])


def test_only_the_beginning_of_a_large_file_is_read(
    client: TestClient, db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.jobs.explain._READ_BYTES", 1000)
    job_id = create(client)["id"]
    long = result("long", content="x" * (2 << 20))
    worker_steps.end(db, storage, job_id, [long, result("late", "length")], outcomes={"stop": 1, "length": 1})

    assert explained(client, job_id)["reasons"][0]["examples"] == []


def test_the_job_of_another_project_is_not_found(client: TestClient, stranger: TestClient) -> None:
    answer = stranger.get(f"/v1/jobs/{create(client)['id']}/explain")

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "job_id")
