"""Sources of vector stores: made, shown, paused, deleted, and refused before anything is done."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from jobs.ledger.tables import Audit, Job
from jobs.retrieval import indexes, sources
from jobs.retrieval.sources import ITEMS_AT_ONCE
from jobs.retrieval.tables import Source, SourceItem
from jobs.security.keys import id_of
from tests.support.databases import until_waiting
from tests.support.web import make_key, running_app
from tests.unit.api.conftest import client_of

PAGE = {"type": "url", "url": "https://192.0.43.8/a.html"}


@pytest.fixture
def app(make_app: Callable[..., FastAPI], tmp_path: Path) -> FastAPI:
    (tmp_path / "library/docs").mkdir(parents=True)
    folders = {"data_dir": tmp_path / "library/data", "storage_url": f"file://{tmp_path}/library/files/deep"}
    for name in ("data/deep", "files/deep/x", "other"):
        (tmp_path / "library" / name).mkdir(parents=True)
    return make_app(source_folders=(str(tmp_path / "library"),), source_s3=("s3://bucket/docs",), **folders)


@pytest.fixture
def store(client: TestClient) -> str:
    return str(client.post("/v1/vector_stores", json={}).json()["id"])


@pytest.fixture
def path(store: str) -> str:
    return f"/v1/vector_stores/{store}/sources"


def count(app: FastAPI, table: Any) -> int:
    with app.state.services.db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def error_of(answer: Any) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


def test_a_source_is_shown_with_every_key_and_syncs_at_once(app: FastAPI, client: TestClient, path: str) -> None:
    source = client.post(path, json={**PAGE, "attributes": {"a": 1}, "cron": "0 3 * * *"}).json()

    assert source["next_run_at"] > source["created_at"]
    variable = {"id": "", "created_at": 0, "vector_store_id": "", "file_batch_id": "", "next_run_at": 0}
    assert source | variable == {
        **variable,
        "object": "vector_store.source",
        "type": "url",
        "urls": [PAGE["url"]],
        "path": None,
        "glob": None,
        "prefix": None,
        "chunking_strategy": None,
        "attributes": {"a": 1},
        "status": "in_progress",
        "counts": None,
        "last_error": None,
        "last_synced_at": None,
        "cron": "0 3 * * *",
        "timezone": "UTC",
        "paused": False,
    }
    with app.state.services.db.read() as session:
        job = session.get_one(Job, source["file_batch_id"])
    assert (job.kind, job.state, job.payload["source_id"]) == ("ingestion", "queued", source["id"])
    assert client.get(f"{path}/{source['id']}").json() == source
    assert client.post(f"{path}/{source['id']}/sync").json() == source
    assert count(app, Job) == 1
    batch = client.get(f"{path.removesuffix('/sources')}/file_batches/{source['file_batch_id']}").json()
    assert batch["status"] == "in_progress"


def test_source_of_each_type_stores_normalized_fields(client: TestClient, path: str, tmp_path: Path) -> None:
    urls = ["https://192.0.43.8/a", "https://192.0.43.8/b", "https://192.0.43.8/a"]
    chunking = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    folder = {"type": "folder", "path": f"{tmp_path}/library/docs/../docs", "chunking_strategy": chunking}

    assert client.post(path, json={"type": "url", "urls": urls}).json()["urls"] == urls[:2]
    made = client.post(path, json=folder).json()
    assert (made["path"], made["glob"]) == (str((tmp_path / "library/docs").resolve()), "**/*")
    assert made["chunking_strategy"] == chunking
    assert client.post(path, json={"type": "s3", "prefix": "s3://bucket/docs"}).json()["prefix"] == "s3://bucket/docs/"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"type": "url"}, None, "invalid_value"),
        ({"type": "url", "url": "https://a.example/", "urls": ["https://b.example/"]}, None, "invalid_value"),
        ({"type": "url", "path": "/x"}, None, "invalid_value"),
        ({"type": "url", "urls": []}, "urls", "array_below_min_length"),
        ({"type": "url", "url": "http://example.com/"}, "url", "invalid_url"),
        ({"type": "url", "url": "https://127.0.0.1/"}, "url", "invalid_url"),
        ({"type": "url", "url": "https://169.254.169.254/latest"}, "url", "invalid_url"),
        ({"type": "url", "url": "https://user:pw@example.com/"}, "url", "invalid_url"),
        ({"type": "url", "urls": ["https://example.com/", "file:///etc/passwd"]}, "urls", "invalid_url"),
        ({"type": "url", "url": "https://localhost/"}, "url", "invalid_url"),
        ({"type": "folder"}, None, "invalid_value"),
        ({"type": "folder", "glob": "*"}, None, "invalid_value"),
        ({"type": "folder", "path": "/etc"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "library"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/.."}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/link"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/data"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/data/deep"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/other/../data/deep"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/to-data"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/files"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT/files/deep/x"}, "path", "folder_not_allowed"),
        ({"type": "folder", "path": "ROOT", "glob": "../*"}, "glob", "invalid_value"),
        ({"type": "folder", "path": "ROOT", "glob": "/etc/*"}, "glob", "invalid_value"),
        ({"type": "s3", "prefix": "s3://other/docs"}, "prefix", "prefix_not_allowed"),
        ({"type": "s3", "prefix": "s3://bucket"}, "prefix", "prefix_not_allowed"),
        ({"type": "s3", "prefix": "s3://bucket/docs/../x"}, "prefix", "prefix_not_allowed"),
        ({"type": "git", "url": "https://a.example/"}, "type", "invalid_value"),
        ({**PAGE, "cron": "never"}, "cron", "invalid_value"),
        ({**PAGE, "cron": "* * * * *", "timezone": "Mars/Base"}, "timezone", "invalid_value"),
        ({**PAGE, "timezone": "UTC"}, None, "invalid_value"),
        ({**PAGE, "attributes": {"a": []}}, "attributes.a", None),
        ({**PAGE, "schedule": "daily"}, "schedule", "unknown_parameter"),
    ],
)
def test_invalid_source_is_refused_without_changes(
    app: FastAPI, client: TestClient, path: str, tmp_path: Path, body: dict[str, Any], param: str | None, code: str
) -> None:
    (tmp_path / "library/link").symlink_to("/etc")
    (tmp_path / "library/to-data").symlink_to(tmp_path / "library/data")
    body = {
        name: value.replace("ROOT", f"{tmp_path}/library") if name == "path" else value for name, value in body.items()
    }
    before = count(app, Audit)

    status, said_param, said_code = error_of(client.post(path, json=body))

    assert status == 400
    assert code in (None, said_code)
    assert param == said_param
    assert (count(app, Source), count(app, Job), count(app, Audit)) == (0, 0, before)


def test_folder_replaced_by_link_to_data_folder_is_not_synced(
    app: FastAPI, client: TestClient, path: str, tmp_path: Path
) -> None:
    source = client.post(path, json={"type": "folder", "path": f"{tmp_path}/library/other"}).json()["id"]
    jobs = count(app, Job)
    (tmp_path / "library/other").rmdir()
    (tmp_path / "library/other").symlink_to(tmp_path / "library/data")

    refused = client.post(f"{path}/{source}/sync")

    assert error_of(refused) == (400, "path", "folder_not_allowed")
    assert count(app, Job) == jobs


def test_without_a_setting_there_are_no_folders_and_no_s3(make_app: Callable[..., FastAPI], tmp_path: Path) -> None:
    app = make_app()
    client = client_of(app, make_key(app))
    path = f"/v1/vector_stores/{client.post('/v1/vector_stores', json={}).json()['id']}/sources"

    assert error_of(client.post(path, json={"type": "folder", "path": str(tmp_path)}))[2] == "folder_not_allowed"
    assert error_of(client.post(path, json={"type": "s3", "prefix": "s3://bucket/docs"}))[2] == "prefix_not_allowed"


def test_sources_are_listed_page_by_page(client: TestClient, path: str) -> None:
    made = [client.post(path, json=PAGE).json()["id"] for _ in range(5)]

    first = client.get(path, params={"limit": 2}).json()
    second = client.get(path, params={"limit": 3, "after": first["last_id"]}).json()

    assert [one["id"] for one in [*first["data"], *second["data"]]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert client.get(path, params={"after": "vss_none"}).status_code == 400
    items = client.get(f"{path}/{made[0]}/items")
    assert (items.json()["data"], items.json()["has_more"]) == ([], False)
    assert error_of(client.get(f"{path}/{made[0]}/items", params={"after": "x"})) == (400, "after", "invalid_cursor")


def test_repeated_create_with_same_key_makes_single_source(app: FastAPI, client: TestClient, path: str) -> None:
    headers = {"Idempotency-Key": "k"}

    first, second = (client.post(path, json=PAGE, headers=headers) for _ in range(2))

    assert first.json() == second.json()
    assert (count(app, Source), count(app, Job)) == (1, 1)
    assert client.post(path, json={**PAGE, "cron": "* * * * *"}, headers=headers).status_code == 422


def test_a_schedule_is_paused_and_resumed(client: TestClient, path: str) -> None:
    source = client.post(path, json={**PAGE, "cron": "0 3 * * *", "timezone": "Europe/Zurich"}).json()["id"]

    assert [client.post(f"{path}/{source}/pause").json()["paused"] for _ in range(2)] == [True, True]
    assert [client.post(f"{path}/{source}/resume").json()["paused"] for _ in range(2)] == [False, False]


@pytest.mark.parametrize(
    ("state", "request_name", "takes_over"),
    [
        ("completed", "sync", True),
        ("in_progress", "sync", False),
        ("paused", "resume", True),
        ("completed", "resume", False),
        ("completed", "pause", False),
    ],
)
def test_source_belongs_to_the_key_that_made_it_or_later_began_its_work(
    app: FastAPI, client: TestClient, path: str, state: str, request_name: str, takes_over: bool
) -> None:
    source_id = client.post(path, json={**PAGE, "cron": "0 3 * * *"}).json()["id"]
    with app.state.services.db.write() as session:
        source = session.get_one(Source, source_id)
        creator = source.key_id
        source.status = "in_progress" if state == "in_progress" else "completed"
        source.paused_at = 1.0 if state == "paused" else None
    key = make_key(app)

    answer = client_of(app, key).post(f"{path}/{source_id}/{request_name}")

    assert answer.status_code == 200
    assert creator == key_id_of(client)
    with app.state.services.db.read() as session:
        assert session.get_one(Source, source_id).key_id == (id_of(key) if takes_over else creator)


def key_id_of(client: TestClient) -> str:
    return id_of(client.headers["Authorization"].removeprefix("Bearer "))


def test_deleted_source_is_not_found_and_its_sync_is_cancelled(app: FastAPI, client: TestClient, path: str) -> None:
    source = client.post(path, json=PAGE).json()

    answer = client.delete(f"{path}/{source['id']}")

    assert answer.json() == {"id": source["id"], "object": "vector_store.source.deleted", "deleted": True}
    with app.state.services.db.read() as session:
        assert session.get_one(Job, source["file_batch_id"]).state == "cancelling"
        assert session.scalars(select(Audit.action).where(Audit.target == source["id"])).all() == [
            "vector_store.source.create",
            "vector_store.source.delete",
        ]
    assert count(app, Source) == 0
    for method, end in (("get", ""), ("delete", ""), ("post", "/sync"), ("post", "/pause"), ("get", "/items")):
        assert error_of(getattr(client, method)(f"{path}/{source['id']}{end}")) == (404, "source_id", "not_found")


def test_delete_removes_bounded_number_of_items_and_leaves_rest_pending(
    app: FastAPI, client: TestClient, path: str
) -> None:
    source = client.post(path, json=PAGE).json()["id"]
    with app.state.services.db.write() as session:
        session.add_all(
            SourceItem(source_id=source, digest=f"{n:064x}", key=str(n), job_id="", change="") for n in range(450)
        )

    assert client.delete(f"{path}/{source}").status_code == 200

    assert count(app, SourceItem) == 450 - 20 * ITEMS_AT_ONCE
    with app.state.services.db.read() as session:
        assert [one.id for one in sources.pending_deletion(session)] == [source]


def test_a_source_belongs_to_its_store_and_project(client: TestClient, stranger: TestClient, path: str) -> None:
    source = client.post(path, json=PAGE).json()["id"]
    other = client.post("/v1/vector_stores", json={}).json()["id"]

    assert client.get(f"/v1/vector_stores/{other}/sources/{source}").status_code == 404
    assert stranger.get(f"{path}/{source}").status_code == 404
    assert stranger.delete(f"{path}/{source}").status_code == 404
    assert stranger.post(path, json=PAGE).status_code == 404


def test_a_store_has_so_many_sources_and_no_more(
    client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.retrieval.sources._MAX_SOURCES", 2)

    answers = [client.post(path, json=PAGE) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert error_of(answers[2])[2] == "too_many_sources"


@pytest.mark.postgres
def test_concurrent_creates_do_not_exceed_source_limit(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.retrieval.sources._MAX_SOURCES", 1)
    with running_app(tmp_path, postgres_url) as app, ThreadPoolExecutor(2) as pool:
        client, db = client_of(app, make_key(app)), app.state.services.db
        store_id = client.post("/v1/vector_stores", json={}).json()["id"]
        with db.write() as session:
            indexes.lock(session, store_id)
            asked = [pool.submit(client.post, f"/v1/vector_stores/{store_id}/sources", json=PAGE) for _ in range(2)]
            until_waiting(db, 2)

        assert sorted(one.result(timeout=30).status_code for one in asked) == [200, 400]
