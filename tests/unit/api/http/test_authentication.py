"""Requests without a key are refused, and no key sees what is another project's."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message

from jobs.ledger.tables import Job
from jobs.security.keys import revoke_key
from tests.support.tuning_requests import create, registered
from tests.support.web import make_key, rate_completion, running_app, store_completion
from tests.unit.api.calls import LINE, Route, routes
from tests.unit.api.conftest import client_of

CODES = {"missing_api_key", "invalid_api_key"}


def test_every_route_needs_a_key(app: FastAPI, nobody: TestClient) -> None:
    known = routes(app)

    answers = {route: route.call(nobody) for route in known}

    assert len(known) > 25
    assert {answer.status_code for answer in answers.values()} == {401}
    assert {answer.json()["error"]["code"] for answer in answers.values()} == {"missing_api_key"}


@pytest.mark.parametrize(
    "header",
    [
        "Bearer nope",
        "Bearer ",
        "Bearer",
        "Basic dXNlcjpwYXNz",
        "nm_abcdefgh_secret_00000000",
        "Bearer nm_abcdefgh_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx_00000000",
        "Bearer " + "x" * 10_000,
    ],
)
@pytest.mark.first(2)
def test_a_wrong_key_opens_no_route(app: FastAPI, nobody: TestClient, header: str) -> None:
    nobody.headers["Authorization"] = header

    answers = [route.call(nobody) for route in routes(app)]

    assert {answer.status_code for answer in answers} == {401}
    assert all(answer.json()["error"]["code"] in CODES for answer in answers)


def test_two_authorization_headers_are_refused(app: FastAPI, nobody: TestClient) -> None:
    key = make_key(app)
    both = [("Authorization", f"Bearer {key}"), ("Authorization", "Bearer other")]

    assert nobody.get("/v1/files", headers=both).status_code == 401


def test_the_right_secret_under_another_id_is_refused(app: FastAPI, nobody: TestClient) -> None:
    first, second = make_key(app), make_key(app)
    mixed = "_".join([*first.split("_")[:2], *second.split("_")[2:]])

    answer = nobody.get("/v1/files", headers={"Authorization": f"Bearer {mixed}"})

    assert answer.status_code == 401


def test_a_revoked_key_is_soon_refused(app: FastAPI) -> None:
    key = make_key(app)
    client = client_of(app, key)
    assert client.get("/v1/files").status_code == 200
    with app.state.services.db.write() as session:
        revoke_key(session, key.split("_")[1])

    began, pause = time.monotonic(), threading.Event()
    while client.get("/v1/files").status_code == 200 and time.monotonic() - began < 30:
        pause.wait(0.1)

    assert client.get("/v1/files").status_code == 401


async def test_without_a_key_the_body_is_not_read(app: FastAPI) -> None:
    sent: list[Message] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "query_string": b"",
        "headers": [(b"content-length", b"300000000"), (b"content-type", b"multipart/form-data; boundary=x")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)

    assert sent[0]["status"] == 401


def test_wrong_keys_are_rate_limited_and_valid_key_still_works(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app(wrong_keys_per_minute=20)
    client, wrong = client_of(app, make_key(app)), client_of(app, "wrong")

    statuses = [wrong.get("/v1/files").status_code for _ in range(30)]
    refused = wrong.get("/v1/files")

    assert statuses == [401] * 20 + [429] * 10
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["Retry-After"]) > 0
    assert client.get("/v1/files").status_code == 200


def test_a_key_is_in_no_log(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    key = make_key(app)
    caplog.set_level("DEBUG")

    client_of(app, key).post("/v1/batches", json={"input_file_id": key})
    client_of(app, key + "x").get("/v1/files")

    assert key not in caplog.text


@pytest.fixture
def theirs(app: FastAPI, client: TestClient) -> dict[str, str]:
    """Return an object of each kind, of the default project."""
    file = client.post("/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": "batch"}).json()
    upload = {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}
    batch = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    hook = {"name": "n", "url": "https://192.0.43.8/hook", "event_types": ["batch.completed"]}
    response = {"model": "smollm2-135m-instruct", "input": "Hello", "background": True}
    talk = client.post("/v1/conversations", json={"items": [{"role": "user", "content": "Hi"}]}).json()["id"]
    store = client.post("/v1/vector_stores", json={"file_ids": [file["id"]]}).json()["id"]
    brought = client.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": [file["id"]]}).json()["id"]
    index = client.post(f"/v1/vector_stores/{store}/indexes", json={"embedding_dimensions": 64}).json()["id"]
    site = {"type": "url", "url": "https://192.0.43.8/a"}
    source = client.post(f"/v1/vector_stores/{store}/sources", json=site).json()
    step = {"name": "a", "kind": "batch", "request": batch}
    target = {"type": "alias", "id": "my-model", "model": "all-minilm-l6-v2"}
    forced = {"target": target, "force": True, "reason": "r"}
    imported = {"base": response["model"], "files": [{"name": "manifest.json", "file_id": file["id"]}]}
    questions = {"name": "questions", "source": {"type": "responses"}, "embedding_model": "all-minilm-l6-v2"}
    monitor = client.post("/v1/drift_monitors", json=questions).json()["id"]
    grader = {"type": "string_check", "name": "g", "input": "a", "operation": "eq", "reference": "a"}
    graded = {"data_source_config": {"type": "logs"}, "testing_criteria": [grader]}
    online = {
        "name": "n",
        "source": {"type": "responses"},
        "eval_id": client.post("/v1/evals", json=graded).json()["id"],
    }
    made = {
        "vector_store_id": store,
        "index_id": index,
        "file_batch_id": brought,
        "source_id": source["id"],
        "conversation_id": talk,
        "item_id": client.get(f"/v1/conversations/{talk}/items").json()["first_id"],
        "completion_id": store_completion(app),
        "response_id": client.post("/v1/responses", json=response).json()["id"],
        "alias": client.post("/v1/aliases", json={"id": "my-model", "model": response["model"]}).json()["id"],
        "schedule_id": client.post("/v1/schedules", json={"cron": "0 3 * * *", "batch": batch}).json()["id"],
        "prompt_id": client.post("/v1/prompts", json={"instructions": "Be brief."}).json()["id"],
        "feedback_id": rate_completion(app, client),
        "model_version": registered(app, create(client)),
        "model_import_id": client.post("/v1/model_imports", json=imported).json()["id"],
        "promotion_id": client.post("/v1/promotions", json=forced).json()["id"],
        "pipeline_id": client.post("/v1/pipelines", json={"steps": [step]}).json()["id"],
        "dataset": client.post("/v1/datasets", json={"name": "refunds"}).json()["id"],
        "monitor_id": monitor,
        "online_evaluation_id": client.post("/v1/online_evaluations", json=online).json()["id"],
        "check_id": client.post(f"/v1/drift_monitors/{monitor}/checks", json={}).json()["id"],
        "upload_id": client.post("/v1/uploads", json=upload).json()["id"],
        "batch_id": client.post("/v1/batches", json=batch).json()["id"],
        "webhook_endpoint_id": client.post("/v1/webhook_endpoints", json=hook).json()["id"],
        "file_id": file["id"],
    }
    return made | {"job_id": made["batch_id"]}


def test_another_project_s_ids_do_not_exist(
    app: FastAPI, client: TestClient, stranger: TestClient, theirs: dict[str, str]
) -> None:
    owned = [route for route in routes(app) if route.parameter in theirs]

    answers = {route: route.call(stranger, **theirs) for route in owned}

    behind = {"check_id", "item_id", "file_batch_id", "index_id", "source_id"}  # a conversation's, a vector store's
    assert {route.parameter for route in owned} == set(theirs) - behind
    assert {route: answer.status_code for route, answer in answers.items()} == dict.fromkeys(owned, 404)
    unknown = {route: route.call(stranger) for route in owned}
    for route in owned:  # and they look like ids that never were
        assert _without_ids(answers[route].text, theirs) == _without_ids(unknown[route].text, theirs)
    assert Route("GET", "/v1/files/{file_id}").call(client, **theirs).status_code == 200


def test_lists_show_only_objects_of_own_project(stranger: TestClient, theirs: dict[str, str]) -> None:
    lists = (
        "files",
        "batches",
        "jobs",
        "webhook_endpoints",
        "vector_stores",
        "chat/completions",
        "prompts",
        "feedback",
        "model_versions",
        "model_imports",
        "pipelines",
        "datasets",
        "drift_monitors",
        "online_evaluations",
    )
    for path in (f"/v1/{name}" for name in lists):
        assert stranger.get(path).json()["data"] == []
        assert stranger.get(path, params={"after": theirs["file_id"]}).status_code == 400


def test_a_batch_of_another_project_s_file_reads_nothing(
    app: FastAPI, stranger: TestClient, theirs: dict[str, str]
) -> None:
    body = {"input_file_id": theirs["file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}

    batch = stranger.post("/v1/batches", json=body).json()

    with app.state.services.db.read() as session:
        assert session.get_one(Job, batch["id"]).input_path is None


def _without_ids(text: str, ids: dict[str, str]) -> str:
    return re.sub("|".join([*ids.values(), "unknown"]), "ID", text)


def test_metrics_require_configured_key(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("scräpe\n")
    monkeypatch.setenv("NIGHTMILL_METRICS_KEY_FILE", str(tmp_path / "key"))
    with running_app(tmp_path, sqlite_url) as app, TestClient(app) as nobody:
        refused = [
            nobody.get("/metrics", headers=headers)
            for headers in ({}, *({"Authorization": f"Bearer {key}"} for key in ("scrape", "x", make_key(app))))
        ]
        scraped = nobody.get("/metrics", headers={b"authorization": "Bearer scräpe".encode()})
        others = [nobody.get(path).status_code for path in ("/livez", "/readyz", "/statusz")]
        as_client = nobody.get("/v1/files", headers={b"authorization": "Bearer scräpe".encode()})

    assert [one.status_code for one in refused] == [401] * 4
    assert {one.headers["www-authenticate"] for one in refused} == {"Bearer"}
    assert {one.json()["error"]["code"] for one in refused} == CODES
    assert "nightmill_" in scraped.text
    assert others == [200, 200, 200]
    assert as_client.status_code == 401


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.7", {}, 404),
        ("10.0.0.7", {"X-Forwarded-For": "127.0.0.1"}, 404),
        ("::ffff:10.0.0.7", {}, 404),
        ("", {}, 404),  # a Unix socket
        *(("127.0.0.1", {name: "x"}, 404) for name in ("X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "Via")),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, 404),
    ],
)
def test_without_a_key_the_metrics_are_for_this_host_and_for_no_proxy(
    app: FastAPI, peer: str, headers: dict[str, str], status: int
) -> None:
    answer = TestClient(app, client=(peer, 50_000)).get("/metrics", headers=headers)

    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "metrics_local"


def test_wrong_keys_for_the_metrics_are_counted(tmp_path: Path, sqlite_url: str) -> None:
    settings = {"metrics_key": "scrape", "wrong_keys_per_minute": 2}
    with running_app(tmp_path, sqlite_url, **settings) as app, TestClient(app) as nobody:
        refused = [nobody.get("/metrics", headers={"Authorization": "Bearer x"}).status_code for _ in range(3)]
        right = nobody.get("/metrics", headers={"Authorization": "Bearer scrape"}).status_code

    assert (refused, right) == ([401, 401, 429], 200)
