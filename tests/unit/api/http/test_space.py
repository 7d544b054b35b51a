"""The bound on a project's bytes, as clients meet it: 507 with nothing stored, whatever they create."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from api.deps import CallContext, Caller
from api.inference import stored_answers
from jobs.batches import batches
from jobs.clock import now
from jobs.errors import ProjectFull
from jobs.files.tables import File
from jobs.inference.stored import StoredAnswer
from jobs.inference.tables import Conversation, StoredResponse
from jobs.retrieval.tables import VectorStoreFile
from jobs.security.tables import StorageUsage
from jobs.usage import stored_bytes
from jobs.usage.stored_bytes import Arriving
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

LIMIT = 100_000
FULL = (507, "project_storage_full", "false")


@pytest.fixture
def bounded(make_app: Callable[..., FastAPI]) -> FastAPI:
    return make_app(project_max_bytes=LIMIT)


@pytest.fixture
def client(bounded: FastAPI) -> TestClient:
    return client_of(bounded, make_key(bounded))


def upload(client: TestClient, size: int) -> Any:
    return client.post("/v1/files", files={"file": ("a.jsonl", b"x" * size)}, data={"purpose": "batch"})


def refusal(answer: Any) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error"]["code"], answer.headers["x-should-retry"]


def objects(app: FastAPI) -> list[str]:
    root = Path(app.state.services.storage.root)
    return [path.name for path in root.rglob("*") if path.is_file()]


def fill(app: FastAPI, size: int = LIMIT) -> None:
    """Store bytes as workers do: whoever runs a job is not refused."""
    facts = {"purpose": batches.OUTPUT, "filename": "f", "path": "files/file-out", "created_at": 1.0}
    with app.state.services.db.write() as session:
        (project,) = session.scalars(select(StorageUsage.project_id)).all() or ("",)
        session.add(File(id="file-out", project_id=project, bytes=size, **facts))
        session.execute(update(StorageUsage).values(counted_at=now() - 3600))


def test_a_file_beyond_the_limit_is_refused_and_leaves_nothing(bounded: FastAPI, client: TestClient) -> None:
    assert upload(client, LIMIT - 1000).status_code == 200
    before = objects(bounded)

    assert refusal(upload(client, 2000)) == FULL

    assert objects(bounded) == before
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_another_project_has_its_own_bytes(bounded: FastAPI, client: TestClient) -> None:
    upload(client, LIMIT - 1000)

    assert upload(client_of(bounded, make_key(bounded, "another")), 2000).status_code == 200


def test_uploads_at_the_same_moment_do_not_exceed_the_limit(bounded: FastAPI, client: TestClient) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: upload(client, 9_000), range(30)))

    stored = [answer for answer in answers if answer.status_code == 200]
    assert {refusal(answer) for answer in answers if answer.status_code != 200} == {FULL}
    with bounded.state.services.db.read() as session:
        assert session.scalar(select(func.sum(File.bytes))) == 9_000 * len(stored) <= LIMIT
    assert len(objects(bounded)) == len(stored)


def test_arriving_bodies_count_until_received() -> None:
    arriving = Arriving()

    with (
        arriving.hold("p", 60, 100),
        arriving.hold("q", 60, 100),
        pytest.raises(ProjectFull),
        arriving.hold("p", 60, 100),
    ):
        pass
    with arriving.hold("p", 100, 100):
        pass


def test_body_of_unknown_length_is_stored_only_below_limit(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_max_bytes=LIMIT, file_max_bytes=LIMIT // 2)
    client = client_of(app, make_key(app))
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    form = head + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    assert client.post("/v1/files", content=iter([form]), headers=headers).status_code == 200
    fill(app, LIMIT // 2)
    assert refusal(client.post("/v1/files", content=iter([form]), headers=headers)) == FULL


def test_the_parts_of_an_upload_count_and_its_file_takes_their_place(bounded: FastAPI, client: TestClient) -> None:
    wanted = {"bytes": 60_000, "filename": "a", "mime_type": "x", "purpose": "batch"}
    upload_id = client.post("/v1/uploads", json=wanted).json()["id"]
    parts_url = f"/v1/uploads/{upload_id}/parts"
    part = client.post(parts_url, files={"data": b"x" * 60_000}).json()["id"]

    assert refusal(client.post(parts_url, files={"data": b"x" * 60_000})) == FULL
    assert refusal(client.post("/v1/uploads", json=wanted)) == FULL
    completed = client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [part]})

    assert completed.json()["status"] == "completed"
    assert upload(client, 30_000).status_code == 200


def test_a_conversation_grows_up_to_the_limit_and_can_always_be_cut(bounded: FastAPI, client: TestClient) -> None:
    def said(size: int) -> dict[str, Any]:
        return {"items": [{"type": "message", "role": "user", "content": "x" * size}]}

    created = client.post("/v1/conversations", json=said(60_000))
    assert created.status_code == 200, created.text
    items_url = f"/v1/conversations/{created.json()['id']}/items"
    assert client.post(items_url, json=said(30_000)).status_code == 200
    before = objects(bounded)

    assert refusal(client.post(items_url, json=said(30_000))) == FULL
    assert refusal(client.post("/v1/conversations", json=said(30_000))) == FULL

    assert objects(bounded) == before
    with bounded.state.services.db.read() as session:
        assert 90_000 < session.scalars(select(Conversation.bytes)).one() < LIMIT
    fill(bounded)
    item = client.get(items_url).json()["data"][0]["id"]
    assert client.delete(f"{items_url}/{item}").status_code == 200


def test_bytes_written_in_race_at_limit_are_removed(
    bounded: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(client, LIMIT - 1000)
    before = objects(bounded)
    monkeypatch.setattr("api.inference.stored_conversations.check_project", lambda *_: 1)  # another create came between
    content = [{"type": "message", "role": "user", "content": "x" * 2000}]

    assert refusal(client.post("/v1/conversations", json={"items": content})) == FULL

    assert objects(bounded) == before


def test_jobs_that_would_fill_a_full_project_are_refused(bounded: FastAPI, client: TestClient) -> None:
    file_id = upload(client, 10).json()["id"]
    store_id = client.post("/v1/vector_stores", json={"name": "s"}).json()["id"]
    fill(bounded)
    batch = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}

    assert refusal(client.post("/v1/batches", json=batch)) == FULL
    assert refusal(client.post(f"/v1/vector_stores/{store_id}/files", json={"file_id": file_id})) == FULL
    assert refusal(client.post("/v1/vector_stores", json={"name": "t", "file_ids": [file_id]})) == FULL

    with bounded.state.services.db.read() as session:
        assert session.scalar(select(func.count()).select_from(VectorStoreFile)) == 0


def test_a_full_project_is_counted_once_for_many_refusals(
    bounded: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = upload(client, 10).json()["id"]
    store_id = client.post("/v1/vector_stores", json={"name": "s"}).json()["id"]
    counts: list[str] = []
    count, began = stored_bytes._sum_all, now()

    def noted(session: Session, project_id: str) -> tuple[int, int]:
        counts.append(project_id)
        return count(session, project_id)

    monkeypatch.setattr(stored_bytes, "_sum_all", noted)
    monkeypatch.setattr(stored_bytes, "now", lambda: began)
    fill(bounded)
    batch = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}

    for _ in range(3):
        assert refusal(client.post("/v1/batches", json=batch)) == FULL
        assert refusal(client.post(f"/v1/vector_stores/{store_id}/files", json={"file_id": file_id})) == FULL
        indexed = {"embedding_dimensions": 2}
        assert refusal(client.post(f"/v1/vector_stores/{store_id}/indexes", json=indexed)) == FULL

    assert len(counts) == 1


def test_a_response_notes_its_size_and_is_refused_beyond_the_limit(bounded: FastAPI) -> None:
    call = CallContext(bounded.state.services, Caller("k", "p"), "req")
    call.run_in_transaction(
        stored_answers.STORED_RESPONSES.prepare(call, StoredAnswer({"input": ["x" * 60_000]}, {"id": "resp_2"}))
    )

    with pytest.raises(ProjectFull):
        stored_answers.STORED_RESPONSES.prepare(call, StoredAnswer({"input": ["x" * 60_000]}, {"id": "resp_3"}))

    with call.db.read() as session:
        size = session.scalars(select(StoredResponse.bytes)).one()
    assert size == call.storage.size("responses/resp_2")
    assert "resp_3" not in objects(bounded)
