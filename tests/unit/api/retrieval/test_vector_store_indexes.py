"""Indexes beside the one in use: made, shown, listed, compared with it; and what is refused, and changes nothing."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.ledger.tables import Audit, Job
from jobs.queues import Queue
from jobs.retrieval import searches
from jobs.retrieval.searches import FoundChunk, SearchResults
from jobs.retrieval.tables import VectorStore
from tests.support.web import running_app
from tests.support.worker_rows import worker_row
from tests.unit.api.retrieval.test_vector_stores import MODEL, error_of, made, upload

MODELS = f"""
models:
  {MODEL}: {{source: {{packaged: {MODEL}}}, engine: embed}}
  second: {{source: {{packaged: {MODEL}}}, engine: embed, aliases: [another]}}
  stub: {{source: {{urls: ["http://127.0.0.1:9/v1"]}}, engine: http, endpoints: [/v1/chat/completions]}}
"""
CUT = {"type": "sentence", "sentence": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    """With two embedding models."""
    models = tmp_path / "models.yaml"
    models.write_text(MODELS)
    with running_app(tmp_path, sqlite_url, models_file=str(models), embedding_model=MODEL) as app:
        yield app


def create(client: TestClient, store: str, key: str | None = None, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"/v1/vector_stores/{store}/indexes", json=fields, headers=headers)


def indexes(client: TestClient, store: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/vector_stores/{store}/indexes").json()["data"]
    return found


def test_an_index_is_shown_with_every_key(client: TestClient) -> None:
    store = made(client, file_ids=[upload(client), upload(client)])

    index = create(client, store, embedding_model="another", chunking_strategy=CUT).json()

    assert index | {"id": "", "created_at": 0, "job_id": ""} == {
        "id": "",
        "object": "vector_store.index",
        "created_at": 0,
        "vector_store_id": store,
        "status": "building",
        "embedding_model": "second",
        "embedding_dimensions": None,
        "chunking_strategy": CUT,
        "file_counts": {"in_progress": 2, "completed": 0, "failed": 0, "cancelled": 0, "total": 2},
        "missing": 0,  # they are on their way to both
        "usage_bytes": 0,
        "job_id": "",
        "replaced_at": None,
    }
    answer = client.get(f"/v1/vector_stores/{store}/indexes/{index['id']}")
    assert answer.json() == index
    assert answer.headers["openai-poll-after-ms"] == "300"
    assert client.get(f"/v1/jobs/{index['job_id']}").json()["progress"]["total"] == 2
    assert client.get(f"/v1/vector_stores/{store}").json()["embedding_model"] == MODEL


def test_a_store_has_an_index_from_the_first(client: TestClient) -> None:
    store = made(client)

    [only] = indexes(client, store)

    assert (only["id"], only["status"], only["embedding_model"]) == (store, "active", MODEL)


def test_of_an_empty_store_it_is_ready_at_once(app: FastAPI, client: TestClient) -> None:
    store = made(client)
    index = create(client, store, embedding_dimensions=64).json()

    assert (index["status"], index["job_id"], index["embedding_dimensions"]) == ("ready", None, 64)
    path = f"/v1/vector_stores/{store}/indexes/{index['id']}/switch"
    assert [client.post(path).json()["status"] for _ in range(2)] == ["active", "active"]
    assert client.get(f"/v1/vector_stores/{store}").json()["embedding_dimensions"] == 64
    with app.state.services.db.read() as session:
        rows = session.execute(select(Audit.action, Audit.target).where(Audit.action.like("vector_store.index.%")))
        assert [tuple(row) for row in rows] == [
            ("vector_store.index.create", index["id"]),
            ("vector_store.index.switch", index["id"]),
        ]


def test_as_short_vectors_stay_as_short_unless_the_model_changes(client: TestClient) -> None:
    store = made(client, embedding_dimensions=64)

    same = create(client, store, chunking_strategy=CUT).json()
    other = create(client, store, embedding_model="second").json()

    assert (same["embedding_dimensions"], other["embedding_dimensions"]) == (64, None)


def test_indexes_are_listed_by_page(client: TestClient) -> None:
    store = made(client)
    ids = [store, *(create(client, store, embedding_dimensions=n).json()["id"] for n in (8, 16))]
    made(client)

    def page(**params: Any) -> tuple[list[str], bool]:
        answer = client.get(f"/v1/vector_stores/{store}/indexes", params=params).json()
        return [one["id"] for one in answer["data"]], answer["has_more"]

    assert page() == (ids[::-1], False)
    assert page(order="asc", limit=2) == (ids[:2], True)
    assert page(order="asc", after=ids[1]) == (ids[2:], False)
    answer = client.get(f"/v1/vector_stores/{store}/indexes", params={"after": made(client)})
    assert error_of(answer) == (400, "after", "invalid_cursor")


def test_repeated_create_makes_single_index(app: FastAPI, client: TestClient) -> None:
    store = made(client, file_ids=[upload(client)])

    answers = [create(client, store, "k", embedding_dimensions=64) for _ in range(2)]

    assert answers[0].json() == answers[1].json()
    assert len(indexes(client, store)) == 2
    with app.state.services.db.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, None, "invalid_value"),
        ({"chunking_strategy": None}, None, "invalid_value"),
        ({"embedding_model": "nobody"}, "embedding_model", "model_not_found"),
        ({"embedding_model": "stub"}, "embedding_model", None),
        ({"embedding_model": ""}, "embedding_model", None),
        ({"embedding_dimensions": 0}, "embedding_dimensions", None),
        ({"embedding_dimensions": 385}, "embedding_dimensions", "invalid_value"),
        ({"embedding_dimensions": "64"}, "embedding_dimensions", "invalid_type"),
        ({"chunking_strategy": {"type": "static"}}, "chunking_strategy.static", None),
        ({"embedding_dimensions": 64, "more": 1}, "more", "unknown_parameter"),
    ],
)
def test_invalid_create_names_param(
    client: TestClient, fields: dict[str, Any], param: str | None, code: str | None
) -> None:
    store = made(client)

    status, named, found = error_of(create(client, store, **fields))

    assert (status, named) == (400, param)
    assert found == (code or found)
    assert len(indexes(client, store)) == 1


def test_create_without_fields_names_required_fields(client: TestClient) -> None:
    said = create(client, made(client)).json()["error"]["message"]

    assert said == "One of 'embedding_model', 'embedding_dimensions' and 'chunking_strategy' is required."


def test_there_are_only_so_many(client: TestClient) -> None:
    store = made(client)
    ids = [create(client, store, embedding_dimensions=n).json()["id"] for n in (8, 16, 32)]

    assert error_of(create(client, store, embedding_dimensions=64)) == (409, None, "too_many_indexes")
    gone = client.delete(f"/v1/vector_stores/{store}/indexes/{ids[0]}")

    assert gone.json() == {"id": ids[0], "object": "vector_store.index.deleted", "deleted": True}
    assert create(client, store, embedding_dimensions=64).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/files", None),
        ("DELETE", "", None),
        ("POST", "/sync", None),
        ("POST", "/switch", None),
        ("POST", "/compare", {"queries": ["x"]}),
    ],
)
def test_an_index_of_another_store_is_not_there(client: TestClient, method: str, path: str, body: Any) -> None:
    store, other = made(client), made(client)
    index = create(client, other, embedding_dimensions=64).json()["id"]

    for name in (index, other, "vsi_none"):
        answer = client.request(method, f"/v1/vector_stores/{store}/indexes/{name}{path}", json=body)
        assert error_of(answer) == (404, "index_id", "not_found")
    assert len(indexes(client, other)) == 2


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "", {"embedding_dimensions": 64}),
        ("GET", "/{index}", None),
        ("GET", "/{index}/files", None),
        ("DELETE", "/{index}", None),
        ("POST", "/{index}/sync", None),
        ("POST", "/{index}/switch", None),
        ("POST", "/{index}/compare", {"queries": ["x"]}),
    ],
)
def test_another_project_s_indexes_are_not_there(
    client: TestClient, stranger: TestClient, method: str, path: str, body: Any
) -> None:
    store = made(client)
    index = create(client, store, embedding_dimensions=64).json()["id"]

    answer = stranger.request(method, f"/v1/vector_stores/{store}/indexes{path.format(index=index)}", json=body)

    assert error_of(answer) == (404, "vector_store_id", "not_found")


def test_of_an_expired_store_none_is_built_or_switched_to(app: FastAPI, client: TestClient) -> None:
    store = made(client, expires_after={"anchor": "last_active_at", "days": 1})
    index = create(client, store, embedding_dimensions=64).json()["id"]
    with app.state.services.db.write() as session:
        session.execute(update(VectorStore).values(expires_at=1.0))

    for path, body in (("", {"embedding_dimensions": 8}), (f"/{index}/switch", {}), (f"/{index}/sync", None)):
        answer = client.post(f"/v1/vector_stores/{store}/indexes{path}", json=body)
        assert error_of(answer) == (400, "vector_store_id", "expired")
    assert client.get(f"/v1/vector_stores/{store}/indexes/{index}").json()["status"] == "ready"


def test_a_switch_takes_no_more_than_it_knows(client: TestClient) -> None:
    store = made(client)
    index = create(client, store, embedding_dimensions=64).json()["id"]

    answer = client.post(f"/v1/vector_stores/{store}/indexes/{index}/switch", json={"force": True})

    assert error_of(answer) == (400, "force", "unknown_parameter")
    assert indexes(client, store)[0]["status"] == "ready"


class FakeWorkers:
    """Workers that find for each index what they are told, and note what they are asked."""

    def __init__(self, app: FastAPI) -> None:
        self.found: dict[str, Sequence[str]] = {}  # the rest of the ids of files
        self.refusal: dict[str, AnswerEntry] = {}
        self.asked: list[searches.Search] = []
        self.inner, app.state.services.inference = app.state.services.inference, self
        with app.state.services.db.write() as session:
            session.add(worker_row("w", Queue.EMBED, MODEL, "second"))

    async def submit(self, _queue: str, queued: QueuedRequest, *_: Any, **_options: Any) -> AsyncGenerator[AnswerEntry]:
        search = searches.decode_search(queued.body)
        self.asked.append(search)
        found = self.found.get(search.store_id, ())
        chunks = tuple(FoundChunk(f"file-{name}", "f", 0.5, "t", None, {}) for name in found)
        yield self.refusal.get(search.store_id) or AnswerEntry("end", searches.encode(SearchResults(chunks)))

    async def close(self) -> None:
        await self.inner.close()


def compare(client: TestClient, store: str, index: str, **fields: Any) -> Any:
    return client.post(f"/v1/vector_stores/{store}/indexes/{index}/compare", json=fields)


@pytest.fixture
def pair(app: FastAPI, client: TestClient) -> tuple[FakeWorkers, str, str]:
    """Create a store with a second index of another model."""
    store = made(client)
    return FakeWorkers(app), store, create(client, store, embedding_model="second").json()["id"]


def test_two_indexes_are_compared_query_by_query(client: TestClient, pair: tuple[FakeWorkers, str, str]) -> None:
    store_oracle, store, index = pair
    store_oracle.found = {store: "aabbc", index: "bbda"}

    answer = compare(client, store, index, queries=["one", "two"], max_num_results=3).json()

    assert [(search.store_id, search.model, search.limit) for search in store_oracle.asked] == [
        (store, MODEL, 15), (index, "second", 15), (index, "second", 15), (store, MODEL, 15),
    ]  # fmt: skip
    assert (answer["object"], answer["max_num_results"], answer["missing"]) == ("vector_store.index.comparison", 3, 0)
    for one, query in zip(answer["data"], ("one", "two"), strict=True):
        assert (one["query"], one["overlap"], one["rank_correlation"]) == (query, 0.6667, -1.0)
        assert one["active"]["file_ids"] == ["file-a", "file-b", "file-c"]
        assert one["candidate"]["file_ids"] == ["file-b", "file-d", "file-a"]
        assert one["active"]["latency_ms"] > 0
        assert (one["active"]["recall"], one["candidate"]["mrr"]) == (None, None)
    summary = answer["summary"]
    assert (summary["overlap"], summary["rank_correlation"], summary["active"]["recall"]) == (0.6667, -1.0, None)
    assert (summary["active"]["index_id"], summary["candidate"]["index_id"]) == (store, index)
    assert summary["candidate"]["latency_ms"] > 0


def test_judged_queries_say_how_good_each_is(client: TestClient, pair: tuple[FakeWorkers, str, str]) -> None:
    store_oracle, store, index = pair
    files = [upload(client) for _ in range(2)]
    for file in files:
        client.post(f"/v1/vector_stores/{store}/files", json={"file_id": file})
    names = [file.removeprefix("file-") for file in files]
    store_oracle.found = {store: "xy", index: "x"}
    queries = [{"query": "one", "relevant": [files[0]]}, "unjudged", {"query": "unjudged too"}]

    bad = compare(client, store, index, queries=queries).json()["summary"]
    store_oracle.found = {store: names, index: names[::-1]}
    good = compare(client, store, index, queries=queries).json()

    assert (bad["active"]["recall"], bad["active"]["ndcg"], bad["active"]["mrr"]) == (0.0, 0.0, 0.0)
    assert (good["summary"]["active"]["recall"], good["summary"]["active"]["mrr"]) == (1.0, 1.0)
    assert (good["summary"]["candidate"]["recall"], good["summary"]["candidate"]["mrr"]) == (1.0, 0.5)
    assert good["summary"]["candidate"]["ndcg"] == 0.6309
    assert [one["active"]["recall"] for one in good["data"]] == [1.0, None, None]


def test_a_worker_that_refuses_is_passed_on(client: TestClient, pair: tuple[FakeWorkers, str, str]) -> None:
    store_oracle, store, index = pair
    error = {"error": {"message": "No.", "type": "server_error", "param": None, "code": "engine_error"}}
    store_oracle.refusal = {index: AnswerEntry("end", msgspec.json.encode(error), 502)}

    answer = compare(client, store, index, queries=["one"])

    assert (answer.status_code, answer.json()) == (502, error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "queries"),
        ({"queries": []}, "queries"),
        ({"queries": ["x"] * 101}, "queries"),
        ({"queries": [""]}, "queries[0]"),
        ({"queries": ["  "]}, "queries[0]"),
        ({"queries": [5]}, "queries[0]"),
        ({"queries": ["x" * 4097]}, "queries[0]"),
        ({"queries": [{"query": ""}]}, "queries[0].query"),
        ({"queries": [{"relevant": ["x"]}]}, "queries[0].query"),
        ({"queries": [{"query": "x", "relevant": []}]}, "queries[0].relevant"),
        ({"queries": ["x", {"query": "x", "relevant": ["file-none"]}]}, "queries[1].relevant"),
        ({"queries": ["x"], "max_num_results": 51}, "max_num_results"),
        ({"queries": ["x"], "more": 1}, "more"),
    ],
)
def test_invalid_comparison_names_param(
    client: TestClient, pair: tuple[FakeWorkers, str, str], fields: dict[str, Any], param: str
) -> None:
    store_oracle, store, index = pair

    status, named, code = error_of(compare(client, store, index, **fields))

    assert (status, named, bool(code)) == (400, param, True)
    assert store_oracle.asked == []


def test_the_index_in_use_is_not_compared_with_itself(client: TestClient, pair: tuple[FakeWorkers, str, str]) -> None:
    _, store, _ = pair

    assert error_of(compare(client, store, store, queries=["x"])) == (400, "index_id", "index_active")


def test_a_file_batch_that_waits_waits_in_every_index(app: FastAPI, client: TestClient) -> None:
    store = made(client)
    create(client, store, embedding_model="another")
    body = {"file_ids": [upload(client)]}
    first = client.post(f"/v1/vector_stores/{store}/file_batches", json=body).json()["id"]

    client.post(f"/v1/vector_stores/{store}/file_batches", json=body | {"after": [first]})

    jobs = client.get("/v1/jobs", params={"limit": 2}).json()["data"]
    assert [(job["after"], job["waiting_for"]) for job in jobs] == [([first], "waiting_for_job")] * 2
