"""The lineage of a version over HTTP: data, base and parents, evaluations and aliases."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.registry import lineage
from jobs.evals import runs
from jobs.finetuning.tables import FinetuneData
from jobs.ledger.tables import Job
from jobs.registry import models
from jobs.registry.tables import TunedModel
from jobs.security import keys
from tests.support.tuning_requests import BASE, create, registered

ROWS = "5" * 64


def set_parent(app: FastAPI, name: str, parent: str) -> None:
    base = {"sha256": "6" * 64, "license": "apache-2.0"}
    with app.state.services.db.write() as session:
        facts = {"parent": parent, "run": {"base": base}}
        session.execute(update(TunedModel).where(TunedModel.name == name).values(manifest=facts))


def lineage_of(client: TestClient, name: str) -> Any:
    answer = client.get(f"/v1/model_versions/{name}/lineage")
    assert answer.status_code == 200, answer.text
    return answer.json()


def edges(shown: Any) -> set[tuple[str, str, str]]:
    return {(edge["source"], edge["relation"], edge["target"]) for edge in shown["edges"]}


@pytest.fixture
def family(app: FastAPI, client: TestClient) -> list[tuple[dict[str, Any], str]]:
    """Return the jobs and the models of a family, of which the second one went on from the first one."""
    jobs = [create(client, suffix="support") for _ in range(2)]
    made = [(job, registered(app, job)) for job in jobs]
    set_parent(app, made[1][1], made[0][1])
    return made


def test_lineage_leads_from_data_over_jobs_and_parents_to_aliases(
    app: FastAPI, client: TestClient, family: list[tuple[dict[str, Any], str]]
) -> None:
    (old, parent), (job, name) = family
    with app.state.services.db.write() as session:
        session.execute(update(FinetuneData).where(FinetuneData.job_id == job["id"]).values(sha256=ROWS, rows=12))
    targets = [{"model": BASE, "weight": 90}, {"model": name, "weight": 10}]
    alias = client.post("/v1/aliases", json={"id": "support", "targets": targets})
    assert alias.status_code == 200, alias.text

    shown = lineage_of(client, name)

    assert edges(shown) == {
        (ROWS, "training", job["id"]),
        (BASE, "base", job["id"]),
        (parent, "parent", job["id"]),
        (job["id"], "result", name),
        (name, "alias", "support"),
        (old["training_file"], "training", old["id"]),
        (BASE, "base", old["id"]),
        (old["id"], "result", parent),
    }
    nodes = {node["id"]: node for node in shown["nodes"]}
    assert len(nodes) == len(shown["nodes"]) == 8
    assert nodes[ROWS] == {
        "id": ROWS, "type": "file", "name": job["training_file"], "sha256": ROWS, "status": None, "stage": None
    }  # fmt: skip
    assert nodes[name] == {
        "id": name, "type": "model.version", "name": f"{BASE}:support 2", "sha256": "0" * 64, "status": "ready",
        "stage": "none",
    }  # fmt: skip
    assert (nodes[BASE]["sha256"], nodes[job["id"]]["status"], shown["truncated"]) == ("6" * 64, "queued", False)


def test_lineage_names_runs_that_asked_the_model(
    app: FastAPI, client: TestClient, family: list[tuple[dict[str, Any], str]]
) -> None:
    name = family[1][1]
    check = {"type": "string_check", "name": "n", "input": "a", "operation": "eq", "reference": "a"}
    config = {"type": "custom", "item_schema": {"type": "object"}}
    made = client.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [check]}).json()
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {}}]}}
    run = client.post(f"/v1/evals/{made['id']}/runs", json={"name": "weekly", "data_source": source}).json()["id"]
    with app.state.services.db.write() as session:
        project_id = session.get_one(Job, run).project_id
        job = {"project_id": project_id, "kind": runs.SAMPLING, "model": name, "payload": {"run_id": run}}
        session.add(Job(id="evalsamp-1", created_at=1.0, **job))

    shown = lineage_of(client, name)

    assert (name, "evaluation", run) in edges(shown)
    assert [node["name"] for node in shown["nodes"] if node["type"] == "eval.run"] == ["weekly"]


def test_parent_of_other_project_is_only_named(
    app: FastAPI, client: TestClient, stranger: TestClient, family: list[tuple[dict[str, Any], str]]
) -> None:
    name = family[1][1]
    theirs = registered(app, create(stranger), step=4)
    with app.state.services.db.write() as session:
        models.permit(session, theirs, [keys.ensure_project(session, "default").id], created_by="key:them")
    set_parent(app, name, theirs)

    shown = lineage_of(client, name)

    [parent] = [node for node in shown["nodes"] if node["id"] == theirs]
    assert (parent["type"], parent["sha256"], parent["status"]) == ("checkpoint", None, None)
    assert all(edge["target"] != theirs for edge in shown["edges"])


def test_long_chain_of_parents_is_cut_off(
    app: FastAPI,
    client: TestClient,
    family: list[tuple[dict[str, Any], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lineage, "MAX_GENERATIONS", 1)

    shown = lineage_of(client, family[1][1])

    assert shown["truncated"]
    assert {edge["target"] for edge in shown["edges"]} == {family[1][0]["id"], family[1][1]}


def test_aliases_of_a_version_are_cut_off(
    client: TestClient, family: list[tuple[dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "MAX_ALIASES", 2)
    for alias in ("a", "b", "c"):
        client.post("/v1/aliases", json={"id": alias, "model": family[1][1]})

    shown = lineage_of(client, family[1][1])

    assert [node["id"] for node in shown["nodes"] if node["type"] == "model.alias"] == ["a", "b"]
    assert shown["truncated"]
