"""Vector stores: created, shown, changed, listed, deleted, searched."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types import VectorStore as OpenAIVectorStore
from sqlalchemy import delete, func, select, update

from jobs.files.tables import File
from jobs.inference.tables import Conversation
from jobs.ledger import ledger
from jobs.ledger.tables import Audit, Job
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from tests.support.databases import until_waiting
from tests.support.web import make_key, running_app
from tests.unit.api.conftest import client_of

MODEL = "all-minilm-l6-v2"


def create(client: TestClient, key: str | None = None, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/v1/vector_stores", json=fields, headers=headers)


def made(client: TestClient, **fields: Any) -> str:
    return str(create(client, **fields).json()["id"])


def upload(client: TestClient, name: str = "a.txt") -> str:
    form = {"files": {"file": (name, b"The text.")}, "data": {"purpose": "assistants"}}
    return str(client.post("/v1/files", **form).json()["id"])


def count(app: FastAPI, table: Any) -> int:
    with app.state.services.db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def error_of(answer: Any) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


def test_a_store_is_shown_with_every_key(client: TestClient) -> None:
    store = create(client, name="n", description="d", metadata={"a": "b"}).json()

    assert store | {"id": "", "created_at": 0, "last_active_at": 0} == {
        "id": "",
        "object": "vector_store",
        "created_at": 0,
        "name": "n",
        "description": "d",
        "usage_bytes": 0,
        "file_counts": {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0},
        "status": "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": 0,
        "metadata": {"a": "b"},
        "embedding_model": MODEL,
        "embedding_dimensions": None,
    }
    assert store["id"].startswith("vs_")
    assert client.get(f"/v1/vector_stores/{store['id']}").json() == store
    assert OpenAIVectorStore.model_validate(store, strict=True).id == store["id"]


def test_a_store_needs_nothing(client: TestClient) -> None:
    store = create(client).json()

    assert (store["name"], store["description"], store["embedding_model"]) == ("", None, MODEL)


def test_files_that_are_named_come_in_at_once(app: FastAPI, client: TestClient) -> None:
    files = [upload(client) for _ in range(3)]

    store = create(client, file_ids=[*files, files[0]]).json()

    assert (store["status"], store["file_counts"]["in_progress"], store["file_counts"]["total"]) == (
        "in_progress",
        3,
        3,
    )
    with app.state.services.db.read() as session:
        job = session.scalars(select(Job)).one()
    assert (job.kind, job.total, job.payload) == ("ingestion", 3, {"store_id": store["id"]})
    assert not job.id.startswith("vsfb_")


def test_with_a_file_that_is_not_there_nothing_is_made(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    for missing in ("file-unknown", upload(stranger)):
        assert error_of(create(client, file_ids=[upload(client), missing])) == (404, "file_id", "not_found")

    assert (count(app, VectorStore), count(app, Job), count(app, VectorStoreFile)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "x" * 257}, "name"),
        ({"name": 5}, "name"),
        ({"file_ids": ["file-x"] * 501}, "file_ids"),
        ({"file_ids": "file-x"}, "file_ids"),
        ({"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
        ({"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days"),
        ({"expires_after": {"anchor": "last_active_at"}}, "expires_after.days"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata." + "k" * 65),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"embedding_dimensions": 0}, "embedding_dimensions"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_invalid_create_names_param(client: TestClient, fields: dict[str, Any], param: str) -> None:
    status, named, code = error_of(create(client, **fields))

    assert (status, named, bool(code)) == (400, param, True)


SIZES = "max_chunk_size_tokens", "chunk_overlap_tokens"


@pytest.mark.parametrize("kind", ["static", "sentence", "structure"])
@pytest.mark.parametrize(("size", "overlap"), [(100, 0), (100, 50), (4096, 2048), (101, 50)])
def test_chunking_strategy_is_stored(app: FastAPI, client: TestClient, kind: str, size: int, overlap: int) -> None:
    strategy = {"type": kind, kind: dict(zip(SIZES, (size, overlap), strict=True))}

    store = made(client, chunking_strategy=strategy)

    with app.state.services.db.read() as session:
        assert session.get_one(VectorStore, store).chunking == strategy


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"percentile": 85.0}),
        ({"percentile": 80}, {"percentile": 80.0}),
        ({"percentile": None, "threshold": 0.4}, {"threshold": 0.4}),
    ],
)
def test_semantic_chunking_strategy_is_stored(
    app: FastAPI, client: TestClient, given: dict[str, Any], kept: dict[str, float]
) -> None:
    most = {"max_chunk_size_tokens": 200}

    store = made(client, chunking_strategy={"type": "semantic", "semantic": most | given})

    with app.state.services.db.read() as session:
        chunking = session.get_one(VectorStore, store).chunking
    assert chunking == {"type": "semantic", "semantic": most | kept}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, ".max_chunk_size_tokens"),
        ({"max_chunk_size_tokens": 99}, ".max_chunk_size_tokens"),
        ({"max_chunk_size_tokens": 200, "percentile": 0}, ".percentile"),
        ({"max_chunk_size_tokens": 200, "percentile": 100}, ".percentile"),
        ({"max_chunk_size_tokens": 200, "percentile": "95"}, ".percentile"),
        ({"max_chunk_size_tokens": 200, "threshold": 0}, ".threshold"),
        ({"max_chunk_size_tokens": 200, "threshold": 2.1}, ".threshold"),
        ({"max_chunk_size_tokens": 200, "percentile": 90, "threshold": 0.5}, ""),
        ({"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}, ".chunk_overlap_tokens"),
    ],
)
def test_a_cut_by_meaning_has_its_limits(client: TestClient, given: dict[str, Any], wrong: str) -> None:
    answer = create(client, chunking_strategy={"type": "semantic", "semantic": given})

    status, param, _ = error_of(answer)
    assert (status, param) == (400, f"chunking_strategy.semantic{wrong}")


@pytest.mark.parametrize("given", [{}, {"chunking_strategy": {"type": "auto"}}])
def test_by_default_it_is_cut_as_openai_cuts(app: FastAPI, client: TestClient, given: dict[str, Any]) -> None:
    store = made(client, **given)

    with app.state.services.db.read() as session:
        kept = session.get_one(VectorStore, store).chunking
    assert kept == {"type": "static", "static": dict(zip(SIZES, (800, 400), strict=True))}


@pytest.mark.parametrize(
    ("size", "overlap", "wrong"),
    [
        (99, 0, ".max_chunk_size_tokens"),
        (4097, 0, ".max_chunk_size_tokens"),
        (100, 51, ""),
        (101, 51, ""),
        (100, -1, ".chunk_overlap_tokens"),
        (None, 0, ".max_chunk_size_tokens"),
        (100, None, ".chunk_overlap_tokens"),
    ],
)
def test_a_way_to_cut_has_its_limits(client: TestClient, size: int | None, overlap: int | None, wrong: str) -> None:
    strategy = {"type": "static", "static": dict(zip(SIZES, (size, overlap), strict=True))}

    status, param, _ = error_of(create(client, chunking_strategy=strategy))

    assert (status, param) == (400, f"chunking_strategy.static{wrong}")


@pytest.mark.parametrize(
    ("strategy", "wrong", "code"),
    [
        ({"type": "other"}, ".type", "invalid_value"),
        ({"type": 5}, ".type", "invalid_value"),
        ({}, ".type", "missing_required_parameter"),
        ({"type": "static"}, ".static", "missing_required_parameter"),
        ({"type": "static", "static": 5}, ".static", "invalid_type"),
        ({"type": "auto", "static": {}}, ".static", "unknown_parameter"),
        ({"type": "auto", "auto": {}}, ".auto", "unknown_parameter"),
        ("auto", "", "invalid_type"),
    ],
)
def test_a_way_to_cut_that_is_none_is_refused(client: TestClient, strategy: Any, wrong: str, code: str) -> None:
    assert error_of(create(client, chunking_strategy=strategy)) == (400, f"chunking_strategy{wrong}", code)


def test_unknown_chunking_strategy_error_lists_supported_values(client: TestClient) -> None:
    message = create(client, chunking_strategy={"type": "other"}).json()["error"]["message"]

    known = "'auto', 'static', 'sentence', 'structure' and 'semantic'"
    assert message == f"Invalid value: 'other'. Supported values are: {known}."


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "unknown-model"])
def test_a_model_that_does_not_embed_is_refused(app: FastAPI, client: TestClient, model: str) -> None:
    status, param, _ = error_of(create(client, embedding_model=model))

    assert (status, param, count(app, VectorStore)) == (400, "embedding_model", 0)


def test_more_dimensions_than_the_models_files_say_it_has_are_refused(app: FastAPI, client: TestClient) -> None:
    assert error_of(create(client, embedding_dimensions=385)) == (400, "embedding_dimensions", "invalid_value")
    assert count(app, VectorStore) == 0
    assert create(client, embedding_dimensions=384).status_code == 200


def test_requested_dimensions_are_shown(client: TestClient) -> None:
    assert create(client, embedding_dimensions=128).json()["embedding_dimensions"] == 128


def test_update_changes_only_named_fields(app: FastAPI, client: TestClient) -> None:
    store = made(client, name="n", metadata={"a": "b"}, expires_after={"anchor": "last_active_at", "days": 3})

    def change(**fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(f"/v1/vector_stores/{store}", json=fields).json()
        return answer

    named, undated, bare = change(name="m"), change(expires_after=None), change(metadata=None)

    assert (named["name"], named["metadata"], named["expires_after"]["days"]) == ("m", {"a": "b"}, 3)
    assert named["expires_at"] == named["last_active_at"] + 3 * 86_400
    assert (undated["expires_after"], undated["expires_at"], undated["name"]) == (None, None, "m")
    assert (bare["metadata"], bare["name"]) == ({}, "m")
    with app.state.services.db.read() as session:
        actions = list(session.scalars(select(Audit.action).where(Audit.target == store)))
    assert actions == ["vector_store.create"] + ["vector_store.update"] * 3


def test_stores_are_listed_newest_first_page_by_page(client: TestClient, stranger: TestClient) -> None:
    made(stranger)
    ids = [made(client, name=str(n)) for n in range(5)]

    def ask(**query: Any) -> tuple[list[str], bool]:
        found = client.get("/v1/vector_stores", params=query).json()
        return [store["id"] for store in found["data"]], found["has_more"]

    assert ask() == (ids[::-1], False)
    assert ask(limit=2) == ([ids[4], ids[3]], True)
    assert ask(limit=2, after=ids[3]) == ([ids[2], ids[1]], True)
    assert ask(limit=2, before=ids[1]) == ([ids[3], ids[2]], True)
    assert ask(limit=2, before=ids[3]) == ([ids[4]], False)
    assert ask(order="asc", after=ids[1], limit=2) == ([ids[2], ids[3]], True)
    assert error_of(client.get("/v1/vector_stores", params={"after": "vs_unknown"})) == (400, "after", "invalid_cursor")


def test_deleted_store_is_not_found_and_its_job_is_cancelled(app: FastAPI, client: TestClient) -> None:
    file = upload(client)
    store = made(client, file_ids=[file])

    answer = client.delete(f"/v1/vector_stores/{store}")

    assert answer.json() == {"id": store, "object": "vector_store.deleted", "deleted": True}
    assert client.get(f"/v1/vector_stores/{store}").status_code == 404
    assert client.delete(f"/v1/vector_stores/{store}").status_code == 404
    assert client.get(f"/v1/files/{file}").status_code == 200
    with app.state.services.db.read() as session:
        assert session.scalars(select(Job.state)).one() == "cancelling"
        assert session.scalars(select(VectorRemoval.what)).one() == "store"


def test_repeated_create_makes_single_store_and_job(app: FastAPI, client: TestClient) -> None:
    file = upload(client)

    first, again = (create(client, "k", name="n", file_ids=[file]) for _ in range(2))
    other = create(client, "k", name="m")

    assert again.text == first.text
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (other.status_code, count(app, VectorStore), count(app, Job)) == (422, 1, 1)


def test_twenty_concurrent_creates_with_same_key_make_single_store(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    start = threading.Barrier(20)

    def ask(_: int) -> str:
        start.wait()
        while (answer := create(client, "k", name="n")).status_code == 503:  # the database is busy: ask again
            threading.Event().wait(0.1)
        return str(answer.text)

    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(ask, range(20)))

    assert (len(answers), count(either, VectorStore)) == (1, 1)


@pytest.mark.postgres
def test_change_or_delete_of_concurrently_deleted_object_returns_404(postgres_url: str, tmp_path: Path) -> None:
    with running_app(tmp_path, postgres_url) as app, ThreadPoolExecutor(4) as pool:
        client, db = client_of(app, make_key(app)), app.state.services.db
        file_id, store_id = upload(client), made(client)
        talk_id = str(client.post("/v1/conversations", json={}).json()["id"])
        requests = [
            ("POST", f"/v1/vector_stores/{store_id}", {"name": "n"}),
            ("DELETE", f"/v1/files/{file_id}", None),
            ("DELETE", f"/v1/conversations/{talk_id}", None),
        ]
        with db.write() as session:
            for row in (VectorStore, File, Conversation):
                session.execute(delete(row))
            asked = [pool.submit(client.request, method, path, json=body) for method, path, body in requests]
            until_waiting(db, len(asked))

        assert [one.result(timeout=30).status_code for one in asked] == [404] * 3


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "", {"name": "m"}),
        ("DELETE", "", None),
        ("GET", "/files", None),
        ("POST", "/files", {"file_id": "file-x"}),
        ("POST", "/file_batches", {"file_ids": ["file-x"]}),
        ("POST", "/search", {"query": "x"}),
    ],
)
def test_another_projects_store_is_not_there(
    client: TestClient, stranger: TestClient, method: str, path: str, body: Any
) -> None:
    store = made(client)

    answer = stranger.request(method, f"/v1/vector_stores/{store}{path}", json=body)

    assert error_of(answer) == (404, "vector_store_id", "not_found")
    assert client.get(f"/v1/vector_stores/{store}").json()["name"] == ""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", {"name": "m"}),
        ("/files", {"file_id": "file-x"}),
        ("/file_batches", {"file_ids": ["file-x"]}),
        ("/search", {"query": "x"}),
    ],
)
def test_an_expired_store_is_shown_and_no_more(app: FastAPI, client: TestClient, path: str, body: Any) -> None:
    store = made(client, expires_after={"anchor": "last_active_at", "days": 1})
    with app.state.services.db.write() as session:
        session.execute(update(VectorStore).values(expires_at=1.0))

    answer = client.post(f"/v1/vector_stores/{store}{path}", json=body)

    assert error_of(answer) == (400, "vector_store_id", "expired")
    assert client.get(f"/v1/vector_stores/{store}").json()["status"] == "expired"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": "  \n"}, "query"),
        ({"query": []}, "query"),
        ({"query": ["x"] * 17}, "query"),
        ({"query": ["x", ""]}, "query"),
        ({"query": "x" * 4097}, "query"),
        ({"query": 5}, "query"),
        ({"query": ["x", 5]}, "query[1]"),
        ({"query": "x", "max_num_results": 0}, "max_num_results"),
        ({"query": "x", "max_num_results": 51}, "max_num_results"),
        ({"query": "x", "rewrite_query": "yes"}, "rewrite_query"),
        ({"query": "x", "ranking_options": {"score_threshold": 1.1}}, "ranking_options.score_threshold"),
        ({"query": "x", "ranking_options": {"ranker": "best"}}, "ranking_options.ranker"),
        (
            {"query": "x", "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
            "ranking_options.hybrid_search",
        ),
        (
            {"query": "x", "ranking_options": {"hybrid_search": {"embedding_weight": -1, "text_weight": 1}}},
            "ranking_options.hybrid_search.embedding_weight",
        ),
        ({"query": "x", "filters": []}, "filters"),
        ({"query": "x", "more": 1}, "more"),
    ],
)
def test_invalid_search_names_param(client: TestClient, fields: dict[str, Any], param: str) -> None:
    status, named, code = error_of(client.post(f"/v1/vector_stores/{made(client)}/search", json=fields))

    assert (status, named, bool(code)) == (400, param, True)


def test_search_without_worker_returns_503(client: TestClient) -> None:
    answer = client.post(f"/v1/vector_stores/{made(client)}/search", json={"query": "x"})

    assert answer.status_code == 503


def test_jobs_of_deleted_store_are_cancelled_in_id_order(either: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maintenance locks them in that order, too."""
    client, cancel, stopped = client_of(either, make_key(either)), ledger.cancel, []

    def noting(session: Any, job_id: str, **by: Any) -> Job:
        stopped.append(job_id)
        return cancel(session, job_id, **by)

    monkeypatch.setattr(ledger, "cancel", noting)
    store_id = made(client)
    for _ in range(12):
        client.post(f"/v1/vector_stores/{store_id}/files", json={"file_id": upload(client)})

    client.delete(f"/v1/vector_stores/{store_id}")

    assert len(stopped) == 12
    assert stopped == sorted(stopped)
