"""Whoever deletes what a list shows, page by page, comes to its end: `for store in client.vector_stores.list(): …`."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.web import make_key, rate_completion, store_completion
from tests.unit.api.conftest import client_of
from tests.unit.api.retrieval.test_vector_stores import upload
from tests.unit.api.schedules.test_schedules import body

ROWS = 5
Made = Callable[[FastAPI, TestClient], str]


def _created(client: TestClient, path: str, **fields: Any) -> str:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def _stores(_app: FastAPI, client: TestClient) -> str:
    for n in range(ROWS):
        _created(client, "/v1/vector_stores", name=str(n))
    return "/v1/vector_stores"


def _files_of_a_store(_app: FastAPI, client: TestClient) -> str:
    files = [upload(client, f"{n}.txt") for n in range(ROWS)]
    return f"/v1/vector_stores/{_created(client, '/v1/vector_stores', file_ids=files)}/files"


def _sources(_app: FastAPI, client: TestClient) -> str:
    path = f"/v1/vector_stores/{_created(client, '/v1/vector_stores')}/sources"
    for n in range(ROWS):
        _created(client, path, type="url", url=f"https://192.0.43.8/{n}.html")
    return path


def _endpoints(_app: FastAPI, client: TestClient) -> str:
    for n in range(ROWS):
        wanted = {"name": str(n), "url": "https://192.0.43.8/", "event_types": ["batch.completed"]}
        _created(client, "/v1/webhook_endpoints", **wanted)
    return "/v1/webhook_endpoints"


def _schedules(_app: FastAPI, client: TestClient) -> str:
    form = {"files": {"file": ("a.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    file_id = client.post("/v1/files", **form).json()["id"]  # type: ignore[arg-type]
    for _ in range(ROWS):
        _created(client, "/v1/schedules", **body(file_id))
    return "/v1/schedules"


def _aliases(_app: FastAPI, client: TestClient) -> str:
    for n in range(ROWS):
        _created(client, "/v1/aliases", id=f"a:{n}", model="all-minilm-l6-v2")
    return "/v1/aliases"


def _completions(app: FastAPI, _client: TestClient) -> str:
    for n in range(ROWS):
        store_completion(app, created_at=float(n))
    return "/v1/chat/completions"


def _feedback(app: FastAPI, client: TestClient) -> str:
    for _ in range(ROWS):
        rate_completion(app, client)
    return "/v1/feedback"


ALL: list[Made] = [_stores, _files_of_a_store, _sources, _endpoints, _schedules, _aliases, _completions, _feedback]


@pytest.mark.parametrize("make", ALL)
def test_deleting_each_listed_object_empties_list(either: FastAPI, make: Made) -> None:
    client = client_of(either, make_key(either))
    path = make(either, client)
    seen: list[str] = []
    place: dict[str, str] = {}
    more = True
    while more:
        page = client.get(path, params={"limit": 2, **place}).json()
        for one in page["data"]:
            assert client.delete(f"{path}/{one['id']}").status_code == 200
            seen.append(one["id"])
        place, more = {"after": seen[-1]}, page["has_more"]

    assert len(set(seen)) == len(seen) == ROWS
    assert client.get(path).json()["data"] == []


@pytest.mark.parametrize("make", [_stores, _completions])
def test_cursor_to_deleted_object_is_invalid_for_other_project(either: FastAPI, make: Made) -> None:
    client, stranger = client_of(either, make_key(either)), client_of(either, make_key(either, "another"))
    path = make(either, client)
    gone = client.get(path).json()["last_id"]
    client.delete(f"{path}/{gone}")

    assert client.get(path, params={"after": gone}).status_code == 200
    assert stranger.get(path, params={"after": gone}).json()["error"]["code"] == "invalid_cursor"


def test_cursor_to_deleted_file_is_invalid_for_other_store(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    one, other = (_files_of_a_store(either, client) for _ in range(2))
    gone = client.get(one).json()["last_id"]
    client.delete(f"{one}/{gone}")

    assert client.get(one, params={"after": gone}).status_code == 200
    assert client.get(other, params={"after": gone}).json()["error"]["code"] == "invalid_cursor"
