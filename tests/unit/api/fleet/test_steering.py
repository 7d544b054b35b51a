"""An admin key steers the deployment and opens no project; a project's key does the reverse."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.fleet import workers
from jobs.ledger.tables import Audit
from jobs.registry import models
from jobs.registry.tables import TunedModel
from jobs.security.keys import create_admin_key
from tests.support import sample_jobs
from tests.support.tuned_adapters import tuned_model
from tests.support.web import make_key
from tests.support.worker_rows import worker_row
from tests.unit.api.calls import routes, takes_admin_key
from tests.unit.api.conftest import client_of

PACKAGED = "smollm2-135m-instruct"


@pytest.fixture
def operator(app: FastAPI) -> TestClient:
    with app.state.services.db.write() as session:
        return client_of(app, create_admin_key(session))


def refusal(answer: Any) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


def test_route_accepts_either_admin_or_project_keys(app: FastAPI, client: TestClient, operator: TestClient) -> None:
    admin = [route for route in routes(app) if takes_admin_key(app, route)]
    others = [route for route in routes(app) if route not in admin]

    of_deployment = [route for route in admin if not route.path.startswith(("/v1/organization/", "/v1/projects/"))]
    assert {(route.method, route.path) for route in of_deployment} == {
        ("GET", "/v1/workers"), ("GET", "/v1/quarantines"), ("GET", "/v1/pauses"), ("POST", "/v1/pauses"),
        ("GET", "/v1/pauses/{kind}/{target}"), ("DELETE", "/v1/pauses/{kind}/{target}"),
        ("POST", "/v1/models/{model}/probe"),
    }  # fmt: skip
    assert {refusal(route.call(client)) for route in admin} == {(403, "admin_key_required")}
    assert {refusal(route.call(operator)) for route in others} == {(403, "admin_key_not_allowed")}


def test_worker_list_shows_running_shards_and_loading_models(app: FastAPI, operator: TestClient) -> None:
    db = app.state.services.db
    how = {"entry": "e", "up": False, "since": 1.0, "phase": "reading the weights"}
    with db.write() as session:
        workers.register(session, worker_row("w", "gpu.generate", "m"))
        workers.heartbeat(session, "w", engines={"m": how})
    sample_jobs.claim_shard(db, sample_jobs.running(db).id, worker="w")

    [worker] = operator.get("/v1/workers").json()["data"]

    assert (worker["object"], worker["id"], worker["running"], worker["slots"]) == ("worker", "w", 1, 2)
    assert worker["loading"] == [{"model": "m", "phase": "reading the weights", "since": 1.0}]


def test_a_quarantined_engine_is_shown_with_its_log_and_freed_by_resuming(app: FastAPI, operator: TestClient) -> None:
    with app.state.services.db.write() as session:
        sample_jobs.quarantined(session, PACKAGED)

    [row] = operator.get("/v1/quarantines").json()["data"]
    change = operator.delete(f"/v1/pauses/model/{PACKAGED}").json()

    assert (row["model"], row["deaths"], row["lines"]) == (PACKAGED, 2, ["no device"])
    assert (change["paused"], change["changed"], change["freed"]) == (False, True, 1)
    assert operator.get("/v1/quarantines").json()["data"] == []


def test_a_pause_is_made_once_listed_and_ended(app: FastAPI, operator: TestClient) -> None:
    make_key(app, "blue")
    body = {"kind": "project", "name": "blue"}

    first, second = (operator.post("/v1/pauses", json=body).json() for _ in range(2))
    [pause] = operator.get("/v1/pauses").json()["data"]
    ended, again = (operator.delete("/v1/pauses/project/blue").json() for _ in range(2))

    assert (first["paused"], first["changed"], second["changed"]) == (True, True, False)
    assert (pause["object"], pause["kind"], pause["name"], pause["reason"]) == ("pause", "project", "blue", None)
    assert (ended["changed"], again["changed"]) == (True, False)
    assert operator.get("/v1/pauses").json()["data"] == []
    with app.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action.in_(("project.pause", "project.resume")))).all()
    assert [row.action for row in rows] == ["project.pause", "project.resume"]
    assert all(row.actor.startswith("key:") for row in rows)


def test_pause_reports_running_work_and_worker_heartbeats(app: FastAPI, operator: TestClient) -> None:
    db = app.state.services.db
    sample_jobs.claim_shard(db, sample_jobs.running(db).id)
    with db.write() as session:
        workers.register(session, worker_row("w", "gpu.generate", "m"))
        workers.heartbeat(session, "w")

    remaining = operator.get("/v1/pauses/queue/gpu.generate").json()

    assert (remaining["running"], remaining["other_work"], remaining["heartbeats"]) == (1, 0, {"w": 1})


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "kind", "missing_required_parameter"),
        ({"kind": "job", "name": "x"}, "kind", "invalid_value"),
        ({"kind": "queue"}, "name", "missing_required_parameter"),
        ({"kind": "queue", "name": ""}, "name", "string_below_min_length"),
        ({"kind": "queue", "name": "x" * 256}, "name", "string_above_max_length"),
        ({"kind": "queue", "name": 3}, "name", "invalid_type"),
        ({"kind": "queue", "name": "gpu.generate", "odd": 1}, "odd", "unknown_parameter"),
    ],
)
def test_bad_pauses_are_refused(operator: TestClient, body: dict[str, Any], param: str, code: str) -> None:
    refused = operator.post("/v1/pauses", json=body)

    assert refusal(refused) == (400, code)
    assert refused.json()["error"]["param"] == param
    assert operator.get("/v1/pauses").json()["data"] == []


@pytest.mark.parametrize("kind", ["queue", "model", "project", "worker"])
def test_unknown_names_are_not_found_and_leave_no_pause(operator: TestClient, kind: str) -> None:
    answers = [
        operator.post("/v1/pauses", json={"kind": kind, "name": "org/nothing"}),
        operator.get(f"/v1/pauses/{kind}/org/nothing"),
        operator.delete(f"/v1/pauses/{kind}/org/nothing"),
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert operator.get("/v1/pauses").json()["data"] == []
    assert operator.get("/v1/pauses/job/x").status_code == 400


def test_operator_can_retry_failed_model_probe_or_accept_model(
    app: FastAPI, client: TestClient, operator: TestClient
) -> None:
    db, name = app.state.services.db, "ft:smollm2-135m-instruct:default::abc"
    tuned_model(db, app.state.services.storage, name, base=PACKAGED)

    def fail(trial: int) -> None:
        with db.write() as session:
            model = session.scalars(select(TunedModel)).one()
            models.fail_probe(session, model.id, "log-probabilities differ by 0.800 nats a token", trial)

    fail(0)
    chat = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
    refused = client.post("/v1/chat/completions", json=chat)
    assert refusal(refused) == (400, "failed_probe")
    assert "0.800 nats a token" in refused.json()["error"]["message"]

    again = operator.post(f"/v1/models/{name}/probe", json={})
    assert again.json() == {"object": "model.probe", "model": name, "state": "ready", "accepted": False}
    fail(0)  # of a worker that has read the row before
    assert name in {model["id"] for model in client.get("/v1/models").json()["data"]}
    fail(1)
    assert name not in {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert operator.post(f"/v1/models/{name}/probe", json={"accept": True}).json()["accepted"]
    assert name in {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert operator.post("/v1/models/ft:nothing/probe", json={}).status_code == 404
    with db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action == "model.probe")).all()
        assert [row.details for row in rows] == [{"name": name, "accepted": accept} for accept in (False, True)]
