"""Imports of models over HTTP: created, listed, shown and cancelled; refused for files, bases and parents."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.files.tables import File
from jobs.finetuning import model_imports
from jobs.finetuning.tables import ImportedFile
from jobs.ledger import kinds
from jobs.ledger.tables import Audit, Job
from tests.support.tuning_requests import BASE, create, registered, upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of


def request(client: TestClient, **fields: Any) -> dict[str, Any]:
    return {"base": BASE, "files": [{"name": "manifest.json", "file_id": upload(client, "user_data")}]} | fields


def made(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/model_imports", json=request(client, **fields))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refusal(client: TestClient, **fields: Any) -> tuple[int, str, str]:
    answer = client.post("/v1/model_imports", json=request(client, **fields))
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def rows(app: FastAPI) -> tuple[int, int]:
    """Return how many jobs and rows of files there are."""
    with app.state.services.db.read() as session:
        imports = session.scalars(select(Job).where(Job.kind == model_imports.NAME)).all()
        return len(imports), len(session.scalars(select(ImportedFile)).all())


def test_import_is_shown_listed_and_recorded(app: FastAPI, client: TestClient) -> None:
    parent = registered(app, create(client, suffix="support"))
    shown = made(client, suffix="Support team", parent=parent, license="mit")

    assert {name: shown[name] for name in ("object", "status", "base", "suffix", "parent", "license", "model")} == {
        "object": "model.import", "status": "in_progress", "base": BASE, "suffix": "Support team", "parent": parent,
        "license": "mit", "model": None,
    }  # fmt: skip
    assert client.get(f"/v1/model_imports/{shown['id']}").json() == shown
    assert client.get("/v1/model_imports").json()["data"] == [shown]
    with app.state.services.db.read() as session:
        details = session.scalars(select(Audit.details).where(Audit.action == "model_import.create")).one()
    assert details == {"base": BASE, "files": 1}


def test_repeated_request_makes_single_import(app: FastAPI, client: TestClient) -> None:
    body = request(client)
    answers = [
        client.post("/v1/model_imports", json=body, headers={"Idempotency-Key": "weekly"}).json() for _ in range(2)
    ]

    assert answers[0] == answers[1]
    assert rows(app) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"base": "none"}, (400, "model_not_available", "base")),
        ({"base": "all-minilm-l6-v2"}, (400, "model_not_available", "base")),
        ({"parent": "ft:none"}, (400, "model_not_found", "parent")),
        ({"files": []}, (400, "array_below_min_length", "files")),
        ({"files": [{"name": "a.json", "file_id": "file-x"}]}, (400, "file_not_found", "files")),
        ({"files": [{"name": "a.json", "file_id": "file-x"}] * 2}, (400, "invalid_value", "files")),
        (
            {"files": [{"name": f"{n}.json", "file_id": "f"} for n in range(65)]},
            (400, "array_above_max_length", "files"),
        ),
        ({"files": [{"name": "", "file_id": "f"}]}, (400, "string_below_min_length", "files[0].name")),
        ({"suffix": "x" * 65}, (400, "string_above_max_length", "suffix")),
        ({"family": "a:b"}, (400, "unknown_parameter", "family")),
    ],
)
def test_bad_request_makes_nothing(
    app: FastAPI, client: TestClient, fields: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    assert refusal(client, **fields) == expected
    assert rows(app) == (0, 0)


def test_tuned_model_is_no_base_and_parent_has_same_base(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    tuned = registered(app, create(client))
    theirs = registered(app, create(stranger))

    assert refusal(client, base=tuned) == (400, "invalid_value", "base")
    assert refusal(client, parent=theirs) == (400, "model_not_found", "parent")


def test_files_of_another_project_are_none(client: TestClient, stranger: TestClient) -> None:
    theirs = [{"name": "manifest.json", "file_id": upload(stranger, "user_data")}]

    assert refusal(client, files=theirs) == (400, "file_not_found", "files")


def test_files_are_bounded_together(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_imports, "MAX_BYTES", 1)

    assert refusal(client) == (400, "model_too_large", "files")
    assert rows(app) == (0, 0)


def test_live_imports_of_project_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_imports, "MAX_LIVE", 1)
    first = made(client)

    answer = client.post("/v1/model_imports", json=request(client))
    assert answer.status_code == 429, answer.text
    assert client.post(f"/v1/model_imports/{first['id']}/cancel").json()["status"] == "cancelling"


def test_project_without_space_imports_nothing(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_max_bytes=1500)  # the file is stored once, and would be twice
    client = client_of(app, make_key(app))
    files = [{"name": "manifest.json", "file_id": upload(client, "user_data")}]

    answer = client.post("/v1/model_imports", json={"base": BASE, "files": files})
    assert answer.json()["error"]["code"] == "project_storage_full"


def test_file_of_live_import_is_read(app: FastAPI, client: TestClient) -> None:
    body = request(client)
    file_id = body["files"][0]["file_id"]
    client.post("/v1/model_imports", json=body)
    with app.state.services.db.read() as session:
        assert session.scalar(select(File.id).where(File.id == file_id, kinds.is_read(File.id))) == file_id


def test_cancelled_import_is_no_import_of_another_project(client: TestClient, stranger: TestClient) -> None:
    shown = made(client)
    path = f"/v1/model_imports/{shown['id']}"

    assert [stranger.get(path).status_code, stranger.post(f"{path}/cancel").status_code] == [404, 404]
    for _ in range(2):
        assert client.post(f"{path}/cancel").json()["status"] == "cancelling"
