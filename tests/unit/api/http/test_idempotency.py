"""`Idempotency-Key`: one job however often it is asked for, and never a key that is stuck."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.files.tables import File
from jobs.ledger.tables import Job
from jobs.security.tables import Idempotency
from tests.support.web import make_key
from tests.unit.api.conftest import client_of
from tests.unit.api.files.test_files import form, upload

BATCH = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def create(client: TestClient, key: str, **changes: Any) -> Any:
    return client.post("/v1/batches", json=BATCH | changes, headers={"Idempotency-Key": key})


def count(app: FastAPI, table: Any) -> int:
    with app.state.services.db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_repeated_create_returns_first_answer(app: FastAPI, client: TestClient) -> None:
    first, second = create(client, "k"), create(client, "k")

    assert second.text == first.text
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert count(app, Job) == 1


def test_the_order_of_fields_does_not_matter(app: FastAPI, client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}

    client.post("/v1/batches", json=BATCH, headers=headers)
    again = client.post("/v1/batches", json=dict(reversed(BATCH.items())), headers=headers)

    assert again.status_code == 200
    assert count(app, Job) == 1


def test_another_body_under_the_same_key_is_422(app: FastAPI, client: TestClient) -> None:
    create(client, "k")

    answer = create(client, "k", priority=1)

    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "idempotency_key_mismatch"
    assert count(app, Job) == 1


def test_hundred_concurrent_creates_make_single_job(either: FastAPI) -> None:
    key = make_key(either)
    clients = [client_of(either, key) for _ in range(8)]
    start = threading.Barrier(len(clients))

    def many(client: TestClient) -> list[Any]:
        start.wait()
        return [create(client, "k") for _ in range(13)]

    with ThreadPoolExecutor(len(clients)) as pool:
        answers = [answer for answers in pool.map(many, clients) for answer in answers]

    assert len(answers) == 104
    assert {answer.status_code for answer in answers} <= {200, 503}  # 503: the writer lock was taken for too long
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 200}) == 1
    assert count(either, Job) == 1


def test_another_project_s_key_is_another_key(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    first, second = create(client, "k"), create(stranger, "k", priority=1)

    assert second.status_code == 200
    assert first.json()["id"] != second.json()["id"]


def test_a_key_counts_for_its_route_alone(client: TestClient) -> None:
    create(client, "k")
    body = {"bytes": 1, "filename": "a", "mime_type": "b", "purpose": "batch"}

    assert client.post("/v1/uploads", json=body, headers={"Idempotency-Key": "k"}).status_code == 200


@pytest.mark.parametrize(("length", "status"), [(0, 400), (1, 200), (255, 200), (256, 400)])
def test_a_key_has_1_to_255_characters(client: TestClient, length: int, status: int) -> None:
    answer = create(client, "k" * length)

    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["param"] == "Idempotency-Key"


def test_a_create_that_failed_keeps_nothing(client: TestClient) -> None:
    refused = create(client, "k", completion_window="never")

    assert refused.status_code == 400
    assert create(client, "k").status_code == 200


def test_a_key_is_forgotten_after_a_week(app: FastAPI, client: TestClient) -> None:
    first = create(client, "k").json()
    with app.state.services.db.write() as session:
        session.scalars(select(Idempotency)).one().created_at -= 8 * 86_400

    assert create(client, "k", priority=1).status_code == 200
    assert create(client, "k", priority=1).json()["id"] != first["id"]


def test_the_job_is_found_by_its_key(client: TestClient, stranger: TestClient) -> None:
    batch = create(client, "my key").json()
    create(client, "other")

    found = client.get("/v1/jobs", params={"idempotency_key": "my key"}).json()["data"]

    assert [job["id"] for job in found] == [batch["id"]]
    assert stranger.get("/v1/jobs", params={"idempotency_key": "my key"}).json()["data"] == []


def send(client: TestClient, key: str, data: bytes = b"hello\n", name: str = "a.jsonl") -> Any:
    """Send the request with a new boundary, as the SDK does each time."""
    headers = {"Idempotency-Key": key}
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "batch"}, headers=headers)


def test_repeated_file_upload_returns_first_file(app: FastAPI, client: TestClient) -> None:
    first, second = send(client, "k"), send(client, "k")

    assert second.text == first.text
    assert second.headers["Idempotency-Replayed"] == "true"
    assert count(app, File) == 1
    assert app.state.services.storage.list("files") == [f"files/{first.json()['id']}"]


def test_repeated_upload_is_replayed_even_if_disk_is_full(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = send(client, "k")
    monkeypatch.setattr(app.state.services.storage, "free", lambda: 0)

    assert send(client, "k").text == first.text
    assert send(client, "other").status_code == 507


@pytest.mark.parametrize("other", [{"data": b"other"}, {"name": "b.jsonl"}])
def test_another_file_under_the_same_key_is_422(app: FastAPI, client: TestClient, other: dict[str, Any]) -> None:
    send(client, "k")

    assert send(client, "k", **other).status_code == 422
    assert count(app, File) == 1
    assert len(app.state.services.storage.list("files")) == 1


def test_a_file_that_was_refused_keeps_no_key(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    cut = client.post(
        "/v1/files", content=b"nonsense", headers={**headers, "Content-Type": "multipart/form-data; boundary=x"}
    )

    assert cut.status_code == 400
    assert send(client, "k").status_code == 200


def test_full_disk_returns_507_even_if_key_release_fails(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def busy(_lease: object) -> None:
        raise DatabaseBusy

    monkeypatch.setattr("jobs.platform.storage.os.fsync", full)
    monkeypatch.setattr("api.http.idempotency.Lease.drop", busy)

    assert send(client, "k").status_code == 507


def _in_flight(app: FastAPI, project_id: str, heartbeat_at: float) -> None:
    """As a request leaves it that receives bytes, or was killed while it did."""
    with app.state.services.db.write() as session:
        row = Idempotency(project_id=project_id, route="POST /v1/files", key="k", owner="own_other", status=0)
        row.heartbeat_at = row.created_at = heartbeat_at
        session.add(row)


def _project(app: FastAPI, client: TestClient) -> str:
    upload(client)
    with app.state.services.db.read() as session:
        return session.scalars(select(File.project_id)).first() or ""


def test_while_the_bytes_of_another_arrive_it_is_409_and_worth_another_try(app: FastAPI, client: TestClient) -> None:
    _in_flight(app, _project(app, client), now())

    answer = send(client, "k")

    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "idempotency_key_in_use"
    assert answer.headers["x-should-retry"] == "true"
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("drift", [-31.0, 3600.0])
def test_key_of_killed_request_is_taken_over(app: FastAPI, client: TestClient, drift: float) -> None:
    _in_flight(app, _project(app, client), now() + drift)

    first, second = send(client, "k"), send(client, "k")

    assert first.status_code == 200
    assert second.text == first.text


def test_request_that_lost_its_key_stores_no_file(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a slow request lose its lease to another one with the same key: only one file may be made."""
    from api.http.idempotency import Lease

    complete = Lease.complete

    def overtaken(lease: Lease, *arguments: Any) -> Any:
        with app.state.services.db.write() as session:
            session.scalars(select(Idempotency)).one().owner = "own_other"
        return complete(lease, *arguments)

    monkeypatch.setattr(Lease, "complete", overtaken)
    answer = send(client, "k")

    assert answer.status_code == 409
    assert count(app, File) == 0
    assert app.state.services.storage.list("files") == []


def test_a_lease_is_renewed_while_bytes_arrive(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.http.idempotency import Lease

    heartbeats: list[str] = []
    heartbeat = Lease._heartbeat

    def noted(lease: Lease) -> None:
        heartbeats.append(lease.owner)
        heartbeat(lease)

    monkeypatch.setattr(Lease, "_heartbeat", noted)
    monkeypatch.setattr("api.http.idempotency.time.monotonic", iter(range(0, 10_000, 60)).__next__)
    body = form(('form-data; name="purpose"', b"batch"), ('form-data; name="file"; filename="a"', b"x" * 500_000))
    pieces = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    headers = {"Idempotency-Key": "k", "Content-Type": "multipart/form-data; boundary=f5c0f858a91f548ca1712d6ffa2ee094"}
    answer = client.post("/v1/files", content=pieces, headers=headers)

    assert answer.status_code == 200
    assert len(heartbeats) >= 1


def test_a_part_and_a_webhook_endpoint_are_made_once_too(client: TestClient) -> None:
    body = {"bytes": 1, "filename": "a", "mime_type": "b", "purpose": "batch"}
    upload_id = client.post("/v1/uploads", json=body).json()["id"]
    hook = {"name": "n", "url": "https://192.0.43.8/hook", "event_types": ["batch.completed"]}
    headers = {"Idempotency-Key": "k"}

    parts = [
        client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", b"x")}, headers=headers).text
        for _ in range(2)
    ]
    hooks = [client.post("/v1/webhook_endpoints", json=hook, headers=headers).text for _ in range(2)]

    assert parts[0] == parts[1]
    assert hooks[0] == hooks[1]
    assert len(client.get("/v1/webhook_endpoints").json()["data"]) == 1
