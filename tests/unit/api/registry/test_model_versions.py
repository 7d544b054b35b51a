"""Versions of models over HTTP: listed as they are and as they were, staged, described, and deleted."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from jobs.ledger.tables import Audit
from jobs.registry import model_versions
from jobs.registry.tables import ModelMove, ModelVersion, TunedModel
from tests.support.tuning_requests import BASE, create, registered
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

FAMILY = f"{BASE}:support"


@pytest.fixture
def names(app: FastAPI, client: TestClient) -> list[str]:
    """Return the names of two models of a family, the older one first."""
    return [registered(app, create(client, suffix="support")) for _ in range(2)]


def change(client: TestClient, name: str, **fields: Any) -> Any:
    return client.post(f"/v1/model_versions/{name}", json=fields)


def listed(client: TestClient, **query: Any) -> list[str]:
    answer = client.get("/v1/model_versions", params={"order": "asc", **query})
    assert answer.status_code == 200, answer.text
    return [version["id"] for version in answer.json()["data"]]


def test_version_is_shown_with_number_stage_and_manifest(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    names = [registered(either, create(client, suffix="support")) for _ in range(2)]
    with either.state.services.db.write() as session:
        base = {"sha256": "1" * 64, "revision": None, "license": "apache-2.0"}
        facts = {"parent": names[0], "bytes": 5, "run": {"base": base}}
        session.execute(update(TunedModel).where(TunedModel.name == names[1]).values(manifest=facts))

    shown = client.get(f"/v1/model_versions/{names[1]}").json()

    manifest = shown.pop("manifest")
    assert (manifest["parent"], manifest["run"]["base"]["sha256"]) == (names[0], "1" * 64)
    job_id, created = shown.pop("fine_tuning_job"), shown.pop("created_at")
    assert job_id == manifest["fine_tuning_job"]
    assert shown.pop("created_by").startswith("key:")
    assert shown == {
        "id": names[1], "object": "model.version", "family": FAMILY, "number": 2, "semantic_version": None,
        "stage": "none", "state": "ready", "base": BASE, "parent": names[0], "method": "lora", "sha256": "0" * 64,
        "bytes": 5, "license": "apache-2.0", "metrics": {}, "data_erased": False, "git_commit": None, "dvc_hash": None,
        "model_import": None,
    }  # fmt: skip
    entries = client.get("/v1/model_versions").json()["data"]
    assert [(entry["number"], entry["created_at"] <= created, entry["manifest"]) for entry in entries] == [
        (2, True, None),
        (1, True, None),
    ]


def test_metrics_are_those_of_step_of_weights(app: FastAPI, client: TestClient) -> None:
    job = create(client)
    name = registered(app, job)
    registered(app, job, step=4)
    with app.state.services.db.write() as session:
        session.execute(update(TunedModel).where(TunedModel.name == name).values(manifest={"run": {"step": 4}}))

    shown = client.get(f"/v1/model_versions/{name}").json()

    assert shown["metrics"] == {"train_loss": 1.5, "train_mean_token_accuracy": 0.5}
    assert listed(client) == [name]  # a checkpoint is no version


def test_stage_is_changed_with_reason_move_and_audit_row(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    names = [registered(either, create(client, suffix="support")) for _ in range(2)]
    assert change(client, names[0], stage="production").json()["stage"] == "production"
    taken = change(client, names[1], stage="production")
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "production_taken")

    changed = change(client, names[1], stage="production", archive_existing=True, reason="Fewer refusals.")

    assert changed.json()["stage"] == "production"
    [move] = client.get(f"/v1/model_versions/{names[1]}/moves").json()["data"]
    assert {name: move[name] for name in ("model", "former_stage", "stage", "reason", "gate")} == {
        "model": names[1], "former_stage": "none", "stage": "production", "reason": "Fewer refusals.", "gate": None
    }  # fmt: skip
    assert move["actor"].startswith("key:")
    older = client.get(f"/v1/model_versions/{names[0]}/moves", params={"order": "asc"}).json()["data"]
    assert [entry["stage"] for entry in older] == ["production", "archived"]
    assert listed(client, stage="production") == [names[1]]
    with either.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action == "model_version.update").order_by(Audit.id)).all()
    assert [(row.details["name"], row.details["former_stage"], row.details["stage"]) for row in rows] == [
        (names[0], "none", "production"),
        (names[1], "none", "production"),
    ]


def test_list_at_a_time_has_versions_and_stages_of_then(
    app: FastAPI, client: TestClient, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.state.services.db.write() as session:
        for number, name in enumerate(names):
            session.execute(update(ModelVersion).where(ModelVersion.model == name).values(created_at=100.5 + number))
    for time, name in ((200.7, names[0]), (300.2, names[1])):
        monkeypatch.setattr(model_versions, "now", lambda time=time: time)
        change(client, name, stage="production", archive_existing=True)
    client.delete(f"/v1/models/{names[0]}")

    assert [listed(client, at=time) for time in (99, 100, 101)] == [[], names[:1], names]
    assert [listed(client, at=time, stage="production") for time in (199, 200, 299, 300)] == [
        [],
        names[:1],
        names[:1],
        names[1:],
    ]
    [entry] = client.get("/v1/model_versions", params={"at": 200, "stage": "production"}).json()["data"]
    assert (entry["stage"], entry["state"]) == ("production", "deleted")


def test_deleted_model_leaves_production_and_keeps_its_history(client: TestClient, names: list[str]) -> None:
    change(client, names[0], stage="production")

    client.delete(f"/v1/models/{names[0]}")

    assert listed(client) == names[1:]
    shown = client.get(f"/v1/model_versions/{names[0]}").json()
    assert (shown["state"], shown["stage"], shown["manifest"]["state"]) == ("deleted", "archived", "deleted")
    moves = client.get(f"/v1/model_versions/{names[0]}/moves").json()["data"]
    assert (moves[0]["stage"], moves[0]["reason"]) == ("archived", "The model was deleted.")
    assert change(client, names[0], stage="staging").status_code == 404
    assert change(client, names[1], stage="production").status_code == 200


def test_facts_are_given_and_removed_by_null(client: TestClient, names: list[str]) -> None:
    facts = {"semantic_version": "1.4.0-rc.1+build", "license": "mit", "git_commit": "0a1b2c3", "dvc_hash": "f" * 32}

    given = change(client, names[0], **facts).json()

    assert {name: given[name] for name in facts} == facts
    assert (given["stage"], change(client, names[0], stage=None).json()["license"]) == ("none", "mit")
    taken = change(client, names[1], semantic_version="1.4.0-rc.1+build", stage="staging")
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "semantic_version_taken")
    assert client.get(f"/v1/model_versions/{names[1]}").json()["stage"] == "none"  # and nothing else was changed
    removed = change(client, names[0], **dict.fromkeys(facts)).json()
    assert {name: removed[name] for name in facts} == dict.fromkeys(facts)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stage": "live"}, "stage"),
        ({"semantic_version": "1.4"}, "semantic_version"),
        ({"semantic_version": "01.4.0"}, "semantic_version"),
        ({"git_commit": "main"}, "git_commit"),
        ({"dvc_hash": "x" * 32}, "dvc_hash"),
        ({"license": ""}, "license"),
        ({"reason": "r" * 513}, "reason"),
        ({"archive_existing": "yes"}, "archive_existing"),
        ({"number": 3}, "number"),
    ],
)
def test_bad_field_is_refused_and_changes_nothing(
    app: FastAPI, client: TestClient, names: list[str], fields: dict[str, Any], param: str
) -> None:
    refused = change(client, names[0], **{"stage": "production", **fields})

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    with app.state.services.db.read() as session:
        assert session.scalars(select(ModelMove)).all() == []


def test_model_that_failed_its_probe_is_not_promoted(app: FastAPI, client: TestClient, names: list[str]) -> None:
    with app.state.services.db.write() as session:
        session.execute(update(TunedModel).where(TunedModel.name == names[0]).values(state="failed_probe"))

    refused = change(client, names[0], stage="production")

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_ready")


def test_list_is_paged_and_filtered_by_family(app: FastAPI, client: TestClient, names: list[str]) -> None:
    other = registered(app, create(client))

    first = client.get("/v1/model_versions", params={"limit": 1}).json()
    assert (first["data"][0]["id"], first["has_more"]) == (other, True)
    client.delete(f"/v1/models/{other}")
    assert listed(client, after=first["last_id"], order="desc") == names[::-1]  # a deleted one is a cursor, too
    assert listed(client, family=FAMILY) == names
    assert listed(client, family="support") == []


def test_list_names_no_version_of_other_project(client: TestClient, stranger: TestClient, names: list[str]) -> None:
    change(client, names[0], stage="production")

    assert listed(stranger) == listed(stranger, at=1 << 40) == listed(stranger, family=FAMILY) == []
    assert stranger.get("/v1/model_versions", params={"after": names[0]}).json()["error"]["code"] == "invalid_cursor"
