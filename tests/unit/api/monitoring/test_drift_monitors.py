"""Monitors of drift over HTTP: created, shown, checked, refused and deleted; nobody works on their jobs."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.monitoring import monitors
from jobs.monitoring.tables import DriftCheck, DriftMonitor
from jobs.queues import Task
from tests.support import sample_jobs

MONITOR: dict[str, Any] = {
    "name": "questions about refunds",
    "source": {"type": "responses", "model": "support", "metadata": {"team": "refunds"}},
    "embedding_model": "all-minilm-l6-v2",
}


def create(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/drift_monitors", json=MONITOR | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def upload(client: TestClient) -> str:
    texts = b'{"input": "Where is my parcel?"}\n' * monitors.MIN_TEXTS
    answer = client.post("/v1/files", files={"file": ("texts.jsonl", texts)}, data={"purpose": "user_data"})
    return str(answer.json()["id"])


def check(client: TestClient, monitor: Any, **fields: Any) -> Any:
    return client.post(f"/v1/drift_monitors/{monitor['id']}/checks", json=fields)


def job(app: FastAPI, job_id: str) -> Job:
    return sample_jobs.job(app.state.services.db, job_id)


def reject(app: FastAPI, job_id: str) -> None:
    """End a job as a worker does that finds too few texts."""
    claim = sample_jobs.claim_job(app.state.services.db, job_id, Task.PLAN)
    error = {"code": "too_few_texts", "message": "The source has 3 texts.", "line": None, "param": "source"}
    with app.state.services.db.write() as session:
        ledger.reject(session, claim, [error])


def test_monitor_is_shown_with_the_state_of_its_baseline(client: TestClient) -> None:
    made = create(client, metadata={"team": "support"})

    assert made["id"].startswith(monitors.MONITOR_PREFIX)
    assert (made["source"], made["window_seconds"], made["sample"]) == (MONITOR["source"], 86_400, 1_000)
    assert (made["baseline"]["status"], made["baseline"]["error"]) == ("queued", None)
    assert client.get(f"/v1/drift_monitors/{made['id']}").json() == made
    assert client.get("/v1/drift_monitors").json()["data"] == [made]


def test_replayed_create_makes_neither_a_second_monitor_nor_a_second_check(client: TestClient) -> None:
    key = {"Idempotency-Key": "monitor-1"}
    first, second = (client.post("/v1/drift_monitors", json=MONITOR, headers=key).json() for _ in range(2))
    path = f"/v1/drift_monitors/{first['id']}/checks"
    checks = [client.post(path, json={}, headers={"Idempotency-Key": "check-1"}).json() for _ in range(2)]

    assert first == second
    assert checks[0] == checks[1]
    assert client.get("/v1/drift_monitors").json()["data"] == [first]
    assert client.get(path).json()["data"] == [checks[0]]


def test_check_waits_for_its_baseline_and_samples_the_last_window(app: FastAPI, client: TestClient) -> None:
    monitor = create(client, window_seconds=3600)

    made = check(client, monitor).json()

    assert (made["monitor_id"], made["status"], made["features"], made["is_drift"]) == (
        monitor["id"], "queued", None, None,
    )  # fmt: skip
    waiting = job(app, made["id"])
    assert waiting.waiting_for == "job"
    source = monitors.DriftSample.model_validate(waiting.payload).source
    assert isinstance(source, monitors.AnswerSource)
    assert source.created_after == pytest.approx(waiting.created_at - 3600, abs=5)
    assert client.get(f"/v1/drift_monitors/{monitor['id']}/checks/{made['id']}").json() == made


def test_failed_baseline_refuses_checks_until_another_is_made(app: FastAPI, client: TestClient) -> None:
    monitor = create(client)
    reject(app, monitor["baseline"]["id"])

    path = f"/v1/drift_monitors/{monitor['id']}"
    assert client.get(path).json()["baseline"]["error"]["code"] == "too_few_texts"
    refused = check(client, monitor)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_baseline")
    another = client.post(f"{path}/baseline", json={"source": {"type": "responses"}}).json()
    assert another["baseline"]["id"] != monitor["baseline"]["id"]
    assert check(client, monitor).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"source": {"type": "file", "file_id": "file-none"}}, "source.file_id"),
        ({"baseline": {"type": "file", "file_id": "file-none"}}, "baseline.file_id"),
        ({"source": {"type": "emails"}}, "source.type"),
        ({"source": {"type": "responses", "created_after": 1}}, "source.created_after"),
        ({"sample": monitors.MAX_TEXTS + 1}, "sample"),
        ({"sample": monitors.MIN_TEXTS - 1}, "sample"),
        ({"window_seconds": 60}, "window_seconds"),
        ({"embedding_model": "nobody-serves-this"}, "embedding_model"),
        ({"name": ""}, "name"),
    ],
)
def test_bad_input_makes_nothing(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/drift_monitors", json=MONITOR | fields)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert client.get("/v1/drift_monitors").json()["data"] == []
    assert client.get("/v1/jobs").json()["data"] == []


def test_file_of_another_project_is_not_found(client: TestClient, stranger: TestClient) -> None:
    source = {"type": "file", "file_id": upload(stranger)}

    answer = client.post("/v1/drift_monitors", json=MONITOR | {"source": source})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "file_not_found")


def test_monitors_and_live_jobs_of_a_project_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "MAX_LIVE", 2)
    monitor = create(client)
    assert check(client, monitor).status_code == 200
    assert check(client, monitor).status_code == 429

    monkeypatch.setattr(monitors, "MAX_LIVE", 100)
    monkeypatch.setattr(monitors, "MAX_MONITORS", 1)
    answer = client.post("/v1/drift_monitors", json=MONITOR)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_drift_monitors")


def test_oldest_check_goes_where_there_are_too_many(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "MAX_CHECKS", 2)
    monitor = create(client)

    made = [check(client, monitor).json()["id"] for _ in range(3)]

    listed = client.get(f"/v1/drift_monitors/{monitor['id']}/checks").json()["data"]
    assert [entry["id"] for entry in listed] == made[:0:-1]


def test_checks_page_by_their_ids(client: TestClient) -> None:
    monitor = create(client)
    made = [check(client, monitor).json()["id"] for _ in range(3)]
    path = f"/v1/drift_monitors/{monitor['id']}/checks"

    first = client.get(path, params={"limit": 2}).json()
    second = client.get(path, params={"limit": 2, "after": first["last_id"]}).json()

    assert [entry["id"] for entry in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_check_is_found_below_its_own_monitor_alone(client: TestClient) -> None:
    one, other = create(client), create(client)
    made = check(client, one).json()["id"]

    answer = client.get(f"/v1/drift_monitors/{other['id']}/checks/{made}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "check_id")


def test_deletion_cancels_jobs_and_leaves_no_rows(app: FastAPI, client: TestClient) -> None:
    monitor = create(client)
    made = check(client, monitor).json()["id"]

    path = f"/v1/drift_monitors/{monitor['id']}"
    assert client.delete(path).json() == {"id": monitor["id"], "object": "drift_monitor.deleted", "deleted": True}

    assert client.get(path).status_code == client.delete(path).status_code == 404
    cancelled = (JobState.CANCELLING, JobState.CANCELLED)
    assert all(job(app, job_id).state in cancelled for job_id in (monitor["baseline"]["id"], made))
    with app.state.services.db.read() as session:
        assert session.scalars(select(DriftMonitor)).all() == []
        assert session.scalars(select(DriftCheck)).all() == []
