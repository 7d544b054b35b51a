"""`after`: batches and file batches that wait for other jobs, shown with what they wait for, and the graph of them."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types import Batch as OpenAIBatch

from jobs.ledger import dependencies, ledger
from tests.support import worker_steps
from tests.unit.api.batches.test_batches import KEYS, create, get, upload
from tests.unit.api.retrieval.test_vector_stores import made
from tests.unit.api.retrieval.test_vector_stores import upload as upload_text


def attempt(client: TestClient, after: Any, **changes: Any) -> Any:
    body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h", "after": after}
    return client.post("/v1/batches", json=body | changes)


def refusal(client: TestClient, after: Any) -> tuple[int, str, str]:
    before = len(client.get("/v1/jobs").json()["data"])
    answer = attempt(client, after)
    assert len(client.get("/v1/jobs").json()["data"]) == before
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return answer.status_code, error["param"], error["code"]


def test_waiting_batch_shows_its_dependencies(app: FastAPI, client: TestClient) -> None:
    first, second = create(client, "f")["id"], create(client)["id"]

    batch = create(client, "f", after=[second, first, second])

    asked = {"after": sorted([first, second]), "waiting_for": "waiting_for_job"}
    assert batch["status"] == "validating"
    for shown in (batch, get(client, batch["id"]), client.get("/v1/batches").json()["data"][0]):
        assert {name: shown[name] for name in asked} == asked
        assert OpenAIBatch.model_validate(shown)
    for job in (client.get(f"/v1/jobs/{batch['id']}").json(), client.get("/v1/jobs").json()["data"][0]):
        assert {name: job[name] for name in asked} == asked
    assert set(get(client, first)) == KEYS


def test_a_batch_no_longer_waits_once_the_other_has_completed(app: FastAPI, client: TestClient) -> None:
    first = create(client)["id"]
    waiting = create(client, "f", after=[first])["id"]

    worker_steps.run(app.state.services.db, app.state.services.storage, first, 2)

    batch = get(client, waiting)
    assert (batch["after"], "waiting_for" in batch) == ([first], False)
    assert client.get(f"/v1/jobs/{waiting}").json()["waiting_for"] is None


def test_a_file_batch_waits_as_a_batch_does(client: TestClient) -> None:
    first, store = create(client, "f")["id"], made(client)
    body = {"file_ids": [upload_text(client)], "after": [first]}

    shown = client.post(f"/v1/vector_stores/{store}/file_batches", json=body).json()

    assert (shown["after"], shown["waiting_for"], shown["status"]) == ([first], "waiting_for_job", "in_progress")
    assert client.get(f"/v1/vector_stores/{store}/file_batches/{shown['id']}").json() == shown
    assert create(client, "f", after=[shown["id"]])["after"] == [shown["id"]]


@pytest.mark.parametrize(
    ("after", "param", "code"),
    [
        (["batch_none"], "after[0]", "job_not_found"),
        ("batch_none", "after", "invalid_type"),
        ([1], "after[0]", "invalid_type"),
        ([""], "after[0]", "string_below_min_length"),
        (["x" * 65], "after[0]", "string_above_max_length"),
        ([f"batch_{n}" for n in range(dependencies.MAX_DEPENDENCIES + 1)], "after", "invalid_value"),
    ],
)
def test_invalid_dependency_is_refused(client: TestClient, after: Any, param: str, code: str) -> None:
    assert refusal(client, after) == (400, param, code)


def test_a_job_of_another_project_is_as_unknown_as_none(client: TestClient, stranger: TestClient) -> None:
    mine, foreign = create(client, "f")["id"], create(stranger, "f")["id"]

    assert refusal(client, [mine, foreign]) == (400, "after[1]", "job_not_found")
    assert attempt(client, [foreign]).json() == {
        "error": {
            "message": f"No job found with id '{foreign}'.",
            "type": "invalid_request_error",
            "param": "after[0]",
            "code": "job_not_found",
        }
    }


def test_a_job_that_has_failed_cannot_be_waited_for(app: FastAPI, client: TestClient) -> None:
    first = create(client, "f")["id"]
    worker_steps.fail(app.state.services.db, first, [])

    assert refusal(client, [first]) == (400, "after[0]", "dependency_failed")


def test_idempotency_key_covers_dependencies(client: TestClient) -> None:
    first, headers = create(client, "f")["id"], {"Idempotency-Key": "k"}
    body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}

    answers = [client.post("/v1/batches", json=body | {"after": [first]}, headers=headers) for _ in range(2)]
    other = client.post("/v1/batches", json=body, headers=headers)

    assert answers[0].json() == answers[1].json()
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_mismatch")


def test_a_waiting_batch_is_cancelled_as_any_other(client: TestClient) -> None:
    waiting = create(client, "f", after=[create(client, "f")["id"]])["id"]

    assert client.post(f"/v1/batches/{waiting}/cancel").json()["status"] == "cancelling"


def test_a_retry_of_a_batch_that_waited_in_vain_waits_for_nothing(app: FastAPI, client: TestClient) -> None:
    db = app.state.services.db
    first = create(client)["id"]
    waiting = create(client, after=[first])["id"]
    worker_steps.fail(db, first, [])
    with db.write() as session:
        job = ledger.lock(session, waiting)
        ledger.fail_dependent(session, job, ledger.dependency_error(session, job), actor="dispatcher")
    failed = get(client, waiting)
    assert [error["code"] for error in failed["errors"]["data"]] == ["dependency_failed"]
    assert first in failed["errors"]["data"][0]["message"]

    retry = client.post(f"/v1/jobs/{waiting}/retry").json()

    assert (retry["state"], retry["after"], retry["waiting_for"]) == ("queued", [], None)


def test_graph_shows_dependencies_and_dependents_of_job(
    app: FastAPI, client: TestClient, stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(client)["id"]
    second = create(client, "f", after=[first])["id"]
    third = create(client, "f", after=[second, first])["id"]
    create(client, "f", after=[first])  # beside it: neither before the second one nor after it
    worker_steps.run(app.state.services.db, app.state.services.storage, first, 1)

    graph = client.get(f"/v1/jobs/{second}/graph").json()

    assert (graph["object"], graph["job_id"], graph["truncated"]) == ("job.graph", second, False)
    assert [(job["id"], job["state"], job["waiting_for"], job["after"]) for job in graph["jobs"]] == [
        (first, "succeeded", None, []),
        (second, "queued", None, [first]),
        (third, "queued", "waiting_for_job", [second]),
    ]
    assert client.get(f"/v1/jobs/{upload(client)}/graph").status_code == 404
    assert stranger.get(f"/v1/jobs/{second}/graph").status_code == 404
    monkeypatch.setattr("api.jobs.routes._EDGES", 1)
    assert client.get(f"/v1/jobs/{second}/graph").json()["truncated"] is True
