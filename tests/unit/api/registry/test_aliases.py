"""Aliases over HTTP: made, changed, listed and deleted, and the names among the models."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.ledger.tables import Audit
from jobs.registry import aliases
from jobs.security import keys
from jobs.security.model_permissions import set_rule
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

MODEL, OTHER = "smollm2-135m-instruct", "all-minilm-l6-v2"
NAME = "ft:gpt-4o-mini:acme::abc/1"
PATH = f"/v1/aliases/{NAME}"


def create(client: TestClient, name: str = NAME, model: str = MODEL, **more: Any) -> Any:
    return client.post("/v1/aliases", json={"id": name, "model": model, **more})


def test_alias_is_created_changed_and_deleted_with_its_audit_rows(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    made = create(client, metadata={"a": "b"})

    assert made.status_code == 200, made.text
    alias = made.json()
    assert (alias["id"], alias["object"], alias["model"], alias["metadata"]) == (NAME, "model.alias", MODEL, {"a": "b"})
    assert client.get(PATH).json() == alias
    assert client.get("/v1/aliases").json()["data"] == [alias]
    changed = client.post(PATH, json={"model": OTHER}).json()
    assert (changed["model"], changed["metadata"], changed["created_at"]) == (OTHER, {"a": "b"}, alias["created_at"])
    assert client.post(PATH, json={"metadata": None}).json()["metadata"] is None
    assert client.delete(PATH).json() == {"id": NAME, "object": "model.alias.deleted", "deleted": True}
    assert client.get(PATH).status_code == client.delete(PATH).status_code == 404
    with either.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action.startswith("alias.")).order_by(Audit.id)).all()
    assert [(row.action.removeprefix("alias."), row.target, row.details["model"]) for row in rows] == [
        ("create", NAME, MODEL), ("update", NAME, OTHER), ("update", NAME, OTHER), ("delete", NAME, OTHER)
    ]  # fmt: skip
    assert rows[1].details["former_model"] == MODEL


def test_repeated_create_returns_the_alias_and_another_model_conflicts(client: TestClient) -> None:
    first = create(client)

    assert create(client).json() == first.json()
    refused = create(client, model=OTHER)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "alias_exists")
    assert client.get(PATH).json()["model"] == MODEL


def test_repeated_key_creates_single_alias(client: TestClient) -> None:
    body, key = {"id": NAME, "model": MODEL}, {"Idempotency-Key": "k"}
    first = client.post("/v1/aliases", json=body, headers=key)
    client.delete(PATH)

    assert client.post("/v1/aliases", json=body, headers=key).json() == first.json()
    assert client.get("/v1/aliases").json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"id": OTHER}, "id", "model_exists"),
        ({"id": ""}, "id", "string_below_min_length"),
        ({"id": "a" * 256}, "id", "string_above_max_length"),
        ({"id": "a b"}, "id", None),
        ({"id": "*"}, "id", None),
        ({"model": "unknown"}, "model", "model_not_found"),
        ({"model": "first"}, "model", "alias_of_alias"),
        ({"model": "gpt-4o-mini"}, "model", "alias_of_alias"),
        ({"model": NAME}, "model", "model_not_found"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"weight": 1}, "weight", "unknown_parameter"),
    ],
)
def test_refused_alias_names_the_field_and_changes_nothing(
    make_app: Any, fields: dict[str, Any], param: str, code: str | None
) -> None:
    app = make_app(openai_aliases=True)
    client = client_of(app, make_key(app))
    create(client, "first")

    refused = client.post("/v1/aliases", json={"id": NAME, "model": MODEL, **fields})

    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["param"] == param
    assert code in (None, error["code"])
    assert [alias["id"] for alias in client.get("/v1/aliases").json()["data"]] == ["first"]


def test_change_to_a_denied_or_unknown_model_is_refused_alike(app: FastAPI, client: TestClient) -> None:
    create(client)
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [OTHER])

    refused = [client.post(PATH, json={"model": model}).json()["error"] for model in (OTHER, "unknown")]

    assert [error["code"] for error in refused] == ["model_not_found"] * 2
    assert client.get(PATH).json()["model"] == MODEL


def test_project_has_a_bounded_number_of_aliases(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MAX_ALIASES", 2)

    answers = [create(client, f"a{n}").json() for n in range(3)]

    assert answers[2]["error"]["code"] == "too_many_aliases"
    client.delete("/v1/aliases/a0")
    assert create(client, "a2").status_code == 200


def test_alias_is_seen_by_its_own_project_alone(client: TestClient, stranger: TestClient) -> None:
    create(client)

    answers = [stranger.get(PATH), stranger.post(PATH, json={"model": OTHER}), stranger.delete(PATH)]

    assert [answer.status_code for answer in answers] == [404] * 3
    assert stranger.get("/v1/aliases").json()["data"] == []
    assert create(stranger, model=OTHER).json()["model"] == OTHER
    assert client.get(PATH).json()["model"] == MODEL


def test_list_of_models_names_the_target_of_an_alias(client: TestClient, stranger: TestClient) -> None:
    create(client)

    listed = {model["id"]: model for model in client.get("/v1/models?include=serving").json()["data"]}
    assert listed[NAME]["alias_of"] == listed[NAME]["serving"]["model"] == MODEL
    assert "alias_of" not in listed[MODEL]
    assert client.get(f"/v1/models/{NAME}").json()["alias_of"] == MODEL
    assert client.delete(f"/v1/models/{NAME}").json()["error"]["code"] == "model_not_deletable"
    assert NAME not in {model["id"] for model in stranger.get("/v1/models").json()["data"]}


def test_models_omit_an_alias_of_a_denied_model(app: FastAPI, client: TestClient) -> None:
    create(client)
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [MODEL])

    assert client.get(f"/v1/models/{NAME}").status_code == 404


def test_key_that_may_only_ask_models_creates_no_alias(app: FastAPI) -> None:
    with app.state.services.db.write() as session:
        key = keys.create_key(session, "default", scopes=["api.model.request"])

    refused = create(client_of(app, key))

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
