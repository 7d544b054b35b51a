"""A job as OpenAI's Batch, in every state of its life."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.batches.schemas import STATUS
from jobs.files.tables import File
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job, Outbox
from tests.support import worker_steps
from tests.unit.api.calls import LINE

KEYS = {
    "id", "object", "endpoint", "model", "resolved_model", "errors", "input_file_id", "completion_window", "status",
    "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at",
    "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata",
}  # fmt: skip


def upload(client: TestClient, purpose: str = "batch") -> str:
    answer = client.post("/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": purpose})
    file_id: str = answer.json()["id"]
    return file_id


def create(client: TestClient, file_id: str | None = None, **changes: Any) -> dict[str, Any]:
    body = {"input_file_id": file_id or upload(client), "endpoint": "/v1/embeddings", "completion_window": "24h"}
    answer = client.post("/v1/batches", json=body | changes)
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


def get(client: TestClient, batch_id: str) -> dict[str, Any]:
    batch: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
    return batch


def test_a_new_batch_has_every_key_and_null_where_there_is_nothing(client: TestClient) -> None:
    file_id = upload(client)

    batch = get(client, create(client, file_id, metadata={"k": "v"})["id"])

    assert set(batch) == KEYS
    assert batch["id"].startswith("batch_")
    assert batch["expires_at"] == batch["created_at"] + 86_400
    given = {"object", "endpoint", "input_file_id", "completion_window", "status", "metadata"}
    assert {key: batch[key] for key in given} == {
        "object": "batch",
        "endpoint": "/v1/embeddings",
        "input_file_id": file_id,
        "completion_window": "24h",
        "status": "validating",
        "metadata": {"k": "v"},
    }
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["usage"] == {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    rest = KEYS - given - {"id", "created_at", "expires_at", "request_counts", "usage"}
    assert {batch[key] for key in rest} == {None}


def test_a_create_enqueues_the_plan_message_in_the_same_transaction(app: FastAPI, client: TestClient) -> None:
    batch = create(client, priority=7)

    with app.state.services.db.read() as session:
        pending = session.scalars(select(Outbox)).one()
        assert (pending.task, pending.queue, pending.job_id, pending.priority) == ("plan", "cpu.plan", batch["id"], 7)


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86_400), ("1m", 60), ("90m", 5400), ("7d", 604_800), ("30d", 2_592_000)]
)
def test_a_window_is_minutes_hours_or_days(client: TestClient, window: str, seconds: int) -> None:
    batch = create(client, completion_window=window)

    assert batch["completion_window"] == window
    assert batch["expires_at"] - batch["created_at"] == seconds


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("/v1/chat/completions", "generation"),
        ("/v1/completions", "generation"),
        ("/v1/responses", "generation"),
        ("/v1/embeddings", "embedding"),
    ],
)
def test_an_endpoint_makes_its_kind_of_job(client: TestClient, endpoint: str, kind: str) -> None:
    batch = create(client, endpoint=endpoint)

    assert client.get(f"/v1/jobs/{batch['id']}").json()["kind"] == kind


def test_our_own_fields_reach_the_job(app: FastAPI, client: TestClient) -> None:
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    batch = create(
        client,
        dedupe=True,
        output_expires_after={"anchor": "created_at", "seconds": 3600},
        webhook={"url": "https://192.0.43.8/hook", "secret": secret},
    )

    with app.state.services.db.read() as session:
        job = session.get_one(Job, batch["id"])
        assert job.payload == {"dedupe": True, "output_expires_seconds": 3600}
        assert (job.webhook_url, job.webhook_secret) == ("https://192.0.43.8/hook", secret)
    assert batch["webhook"] == {"url": "https://192.0.43.8/hook", "signing_secret": None}


def test_generated_webhook_secret_is_returned_only_on_create(app: FastAPI, client: TestClient) -> None:
    batch = create(client, webhook={"url": "https://192.0.43.8/hook"})

    with app.state.services.db.read() as session:
        assert session.get_one(Job, batch["id"]).webhook_secret == batch["webhook"]["signing_secret"]
    assert "signing_secret" not in client.get(f"/v1/batches/{batch['id']}").text
    assert "signing_secret" not in client.get(f"/v1/jobs/{batch['id']}").text


def test_an_unknown_or_deleted_file_is_judged_later(app: FastAPI, client: TestClient) -> None:
    deleted = upload(client)
    client.delete(f"/v1/files/{deleted}")

    batches = [create(client, "file-unknown"), create(client, deleted)]

    with app.state.services.db.read() as session:
        assert {session.get_one(Job, batch["id"]).input_path for batch in batches} == {None}
    assert {batch["status"] for batch in batches} == {"validating"}


def test_a_file_deleted_after_the_create_is_still_read(app: FastAPI, client: TestClient) -> None:
    file_id = upload(client)
    batch = create(client, file_id)

    client.delete(f"/v1/files/{file_id}")

    with app.state.services.db.read() as session:
        path = session.get_one(Job, batch["id"]).input_path
    with app.state.services.storage.reader(path) as handle:
        assert handle.read() == LINE


def test_a_file_for_another_purpose_is_refused_now(client: TestClient) -> None:
    body = {"input_file_id": upload(client, "evals"), "endpoint": "/v1/embeddings", "completion_window": "24h"}

    error = client.post("/v1/batches", json=body).json()["error"]

    assert (error["param"], error["code"]) == ("input_file_id", "invalid_file_purpose")


def test_every_state_has_a_status_of_openai(app: FastAPI) -> None:
    assert set(STATUS) == set(JobState)


def test_batch_shows_counts_and_usage_while_running_and_after_end(app: FastAPI, client: TestClient) -> None:
    db, storage = app.state.services.db, app.state.services.storage
    batch_id = create(client)["id"]
    worker_steps.plan(db, batch_id, 4, "all-minilm-l6-v2")
    claim = worker_steps.take(db, batch_id)
    worker_steps.answer(db, storage, claim, [0, 1], seq=0)

    half = get(client, batch_id)
    worker_steps.answer(db, storage, claim, [2, 3], seq=1, last=True)
    finalizing = get(client, batch_id)
    output = worker_steps.finish(db, storage, batch_id, range(4))
    ended = get(client, batch_id)

    assert (half["status"], half["request_counts"]) == ("in_progress", {"total": 4, "completed": 2, "failed": 0})
    assert (half["model"], half["usage"]["total_tokens"]) == ("all-minilm-l6-v2", 10)
    assert finalizing["status"] == "finalizing"
    assert (ended["status"], ended["request_counts"]) == ("completed", {"total": 4, "completed": 4, "failed": 0})
    assert ended["usage"]["total_tokens"] == 20
    assert (ended["output_file_id"], ended["error_file_id"]) == (output, None)
    stamps = [ended[name] for name in ("created_at", "in_progress_at", "finalizing_at", "completed_at")]
    assert stamps == sorted(stamps)
    assert len(client.get(f"/v1/files/{output}/content").text.splitlines()) == 4


def test_a_rejected_batch_tells_its_errors_by_line(app: FastAPI, client: TestClient) -> None:
    batch_id = create(client)["id"]
    error = {"code": "invalid_json_line", "line": 3, "message": "This line is …", "param": None}
    worker_steps.fail(app.state.services.db, batch_id, [error])

    batch = get(client, batch_id)

    assert batch["status"] == "failed"
    assert batch["failed_at"]
    assert batch["errors"] == {"object": "list", "data": [error]}


def test_an_expiring_batch_is_finalizing_to_openai(app: FastAPI, client: TestClient) -> None:
    db, storage = app.state.services.db, app.state.services.storage
    batch_id = create(client)["id"]
    worker_steps.plan(db, batch_id, 4)
    worker_steps.expire(db, batch_id)

    expiring = get(client, batch_id)
    worker_steps.finish(db, storage, batch_id, [0])
    expired = get(client, batch_id)

    assert (expiring["status"], expiring["finalizing_at"] is not None) == ("finalizing", True)
    assert (expired["status"], expired["output_file_id"] is not None) == ("expired", True)
    assert expired["request_counts"] == {"total": 4, "completed": 1, "failed": 0}


def test_cancelling_twice_is_no_error_in_any_state_before_the_end(app: FastAPI, client: TestClient) -> None:
    db, storage = app.state.services.db, app.state.services.storage
    queued, running = create(client)["id"], create(client)["id"]
    worker_steps.plan(db, running, 2)

    for batch_id in (queued, running):
        first, second = (client.post(f"/v1/batches/{batch_id}/cancel").json() for _ in range(2))
        assert (first["status"], second["status"]) == ("cancelling", "cancelling")
        worker_steps.finish(db, storage, batch_id, [])
        third = client.post(f"/v1/batches/{batch_id}/cancel").json()
        assert third["status"] == "cancelled"
        assert third["cancelling_at"] <= third["cancelled_at"]


def test_repeated_cancel_is_audited_once_with_its_actor(app: FastAPI, client: TestClient) -> None:
    batch_id = create(client)["id"]
    for _ in range(2):
        client.post(f"/v1/batches/{batch_id}/cancel")

    with app.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.target == batch_id, Audit.action == "batch.cancel")).all()
        assert len(rows) == 1
        assert rows[0].actor.startswith("key:")


def _completed(app: FastAPI, batch_id: str) -> None:
    worker_steps.run(app.state.services.db, app.state.services.storage, batch_id, 1)


def _failed(app: FastAPI, batch_id: str) -> None:
    worker_steps.fail(app.state.services.db, batch_id, [])


def _finalizing(app: FastAPI, batch_id: str) -> None:
    worker_steps.plan(app.state.services.db, batch_id, 1)
    worker_steps.answer(
        app.state.services.db,
        app.state.services.storage,
        worker_steps.take(app.state.services.db, batch_id),
        [0],
        last=True,
    )


@pytest.mark.parametrize(
    ("until", "status"), [(_completed, "completed"), (_failed, "failed"), (_finalizing, "finalizing")]
)
def test_ended_or_finalizing_batch_cannot_be_cancelled(
    app: FastAPI, client: TestClient, until: Any, status: str
) -> None:
    batch_id = create(client)["id"]
    until(app, batch_id)

    answer = client.post(f"/v1/batches/{batch_id}/cancel")

    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["message"] == f"Cannot cancel a batch with status '{status}'."
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert get(client, batch_id)["status"] == status


def test_unknown_batches_are_404(client: TestClient) -> None:
    for answer in (client.get("/v1/batches/batch_x"), client.post("/v1/batches/batch_x/cancel")):
        assert answer.status_code == 404
        assert "batch_x" in answer.json()["error"]["message"]


def test_pages_have_no_gaps_despite_new_batches(app: FastAPI, client: TestClient) -> None:
    first = [create(client, "file-x")["id"] for _ in range(7)]
    with app.state.services.db.write() as session:  # two of them at the very same moment
        session.get_one(Job, first[2]).created_at = session.get_one(Job, first[3]).created_at

    seen: list[str] = []
    after = None
    while True:
        page = client.get("/v1/batches", params={"limit": 2, **({"after": after} if after else {})}).json()
        seen += [batch["id"] for batch in page["data"]]
        create(client, "file-x")
        if not page["has_more"]:
            break
        after = page["last_id"]

    assert sorted(seen) == sorted(first)
    assert seen[0] == first[-1]


def test_a_transaction_that_cannot_commit_leaves_no_job(app: FastAPI, client: TestClient, monkeypatch: Any) -> None:
    def fails(*_arguments: Any, **_more: Any) -> None:
        raise RuntimeError("after the job was added")

    monkeypatch.setattr(ledger.outbox, "enqueue", fails)
    answer = client.post(
        "/v1/batches",
        json={"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    )
    monkeypatch.undo()

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "RuntimeError" not in answer.text
    assert answer.headers["x-request-id"]
    assert client.get("/v1/batches").json()["data"] == []


def test_files_and_batches_work_the_same_on_both_databases(either: FastAPI) -> None:
    from tests.support.web import make_key
    from tests.unit.api.conftest import client_of

    client = client_of(either, make_key(either))
    file_id = upload(client)
    batch = create(client, file_id, metadata={"k": "v"}, priority=1)

    worker_steps.run(either.state.services.db, either.state.services.storage, batch["id"], 3, failed=1)

    ended = get(client, batch["id"])
    assert ended["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert [one["id"] for one in client.get("/v1/batches").json()["data"]] == [batch["id"]]
    with either.state.services.db.read() as session:
        assert session.get_one(File, file_id).deleted_at is None
