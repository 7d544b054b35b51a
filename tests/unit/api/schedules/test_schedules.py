"""Recurring batches over HTTP, and batches that begin later."""

import time
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.web import make_key
from tests.unit.api.batches.test_batches import upload
from tests.unit.api.conftest import client_of

BATCH = {"input_file_id": "file-0", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def body(file_id: str, **changes: Any) -> dict[str, Any]:
    batch = {**BATCH, "input_file_id": file_id, "priority": 2}
    return {"cron": "0 3 * * *", "timezone": "Europe/Zurich", "batch": batch} | changes


def test_a_schedule_lives_through_its_verbs(client: TestClient) -> None:
    made = client.post("/v1/schedules", json=body(upload(client)))
    schedule = made.json()
    path = f"/v1/schedules/{schedule['id']}"

    assert made.status_code == 200, made.text
    assert schedule.pop("webhook") is None
    assert (schedule["object"], schedule["status"]) == ("schedule", "active")
    assert schedule["batch"]["priority"] == 2
    assert schedule["next_run_at"] > time.time()
    assert (schedule["last_run_at"], schedule["last_batch_id"], schedule["last_error"]) == (None, None, None)
    assert client.get(path).json() == schedule
    assert (schedule["kind"], schedule["job"]) == ("batch", None)
    listed = {name: value for name, value in schedule.items() if name != "job"}
    assert client.get("/v1/schedules").json()["data"] == [listed]
    assert client.post(f"{path}/pause").json()["status"] == "paused"
    assert client.post(f"{path}/pause").json()["status"] == "paused"
    assert client.post(f"{path}/resume").json() == schedule
    assert client.delete(path).json() == {"id": schedule["id"], "object": "schedule.deleted", "deleted": True}
    assert client.get(path).status_code == 404
    assert client.get("/v1/schedules").json()["data"] == []


def test_repeated_key_creates_single_schedule(client: TestClient) -> None:
    file_id, key = upload(client), {"Idempotency-Key": "k"}

    first, again = (client.post("/v1/schedules", json=body(file_id), headers=key) for _ in range(2))

    assert first.json() == again.json()
    assert len(client.get("/v1/schedules").json()["data"]) == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"cron": "now and then"}, "cron"),
        ({"timezone": "Mars"}, "timezone"),
        ({"cron": ""}, "cron"),
        ({"batch": {}}, "batch.input_file_id"),
        ({"batch": BATCH}, "batch.input_file_id"),
        ({"batch": {**BATCH, "completion_window": "1x"}}, "batch.completion_window"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(client: TestClient, changes: dict[str, Any], param: str) -> None:
    refused = client.post("/v1/schedules", json=body(upload(client), **changes))

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert client.get("/v1/schedules").json()["data"] == []


def test_schedules_are_hidden_from_other_projects(app: FastAPI, client: TestClient) -> None:
    made = client.post("/v1/schedules", json=body(upload(client))).json()
    other = client_of(app, make_key(app, "other"))
    path = f"/v1/schedules/{made['id']}"

    assert other.get("/v1/schedules").json()["data"] == []
    answers = (other.get(path), other.post(f"{path}/pause"), other.post(f"{path}/resume"), other.delete(path))
    assert [answer.status_code for answer in answers] == [404] * 4
    assert client.get(path).json()["status"] == "active"


def test_webhook_secret_is_shown_only_on_create(client: TestClient) -> None:
    wanted = body(upload(client))
    wanted["batch"]["webhook"] = {"url": "https://8.8.8.8/hook"}

    made = client.post("/v1/schedules", json=wanted)

    assert made.status_code == 200, made.text
    assert made.json()["webhook"]["signing_secret"].startswith("whsec_")
    shown = client.get(f"/v1/schedules/{made.json()['id']}")
    assert shown.json()["batch"]["webhook_url"] == "https://8.8.8.8/hook"
    assert "whsec" not in shown.text


def test_a_batch_may_begin_later_and_its_window_counts_from_then(client: TestClient) -> None:
    begin = int(time.time()) + 7200
    fields = {"input_file_id": upload(client), "endpoint": "/v1/embeddings", "completion_window": "90m"}

    made = client.post("/v1/batches", json={**fields, "not_before": begin}).json()
    job = client.get(f"/v1/jobs/{made['id']}").json()
    late = client.post("/v1/batches", json={**fields, "not_before": begin + 10**8})

    assert made["expires_at"] == begin + 5400
    assert job["not_before"] == begin
    assert (late.status_code, late.json()["error"]["param"]) == (400, "not_before")
