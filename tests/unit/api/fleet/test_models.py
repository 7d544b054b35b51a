"""Models: every name that a request may ask for."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types import Model as OpenAIModel
from sqlalchemy import update

from jobs.fleet import workers
from jobs.ledger import pauses
from jobs.queues import Queue
from jobs.registry import models
from jobs.registry.tables import TunedModel
from jobs.security.tables import Project
from tests.support import sample_jobs
from tests.support.tuning_requests import create, registered
from tests.support.web import make_key
from tests.support.worker_rows import worker_row
from tests.unit.api.conftest import client_of


@pytest.fixture
def app(make_app: Callable[..., FastAPI]) -> FastAPI:
    return make_app(openai_aliases=True)


def test_a_model_that_is_not_there_is_answered_with_those_that_are(
    make_app: Callable[..., FastAPI], app: FastAPI
) -> None:
    plain = client_of(bare := make_app(), make_key(bare))
    chat, vectors = {"messages": [{"role": "user", "content": "?"}]}, {"input": "?"}

    said = [
        plain.post("/v1/chat/completions", json={"model": "gpt-4o-mini", **chat}),
        plain.post("/v1/embeddings", json={"model": "text-embedding-3-small", **vectors}),
        plain.get("/v1/models/gpt-4o-mini"),
    ]

    assert [(one.status_code, one.json()["error"]["code"]) for one in said] == [(404, "model_not_found")] * 3
    told = [one.json()["error"]["message"].partition(" does not exist. ")[2] for one in said]
    assert told == [
        "The models that serve /v1/chat/completions here: `smollm2-135m-instruct`.",
        "The models that serve /v1/embeddings here: `all-minilm-l6-v2`.",
        "The models here: `smollm2-135m-instruct`, `all-minilm-l6-v2`.",
    ]


def test_configured_names_aliases_and_discovered_models_are_listed(app: FastAPI, client: TestClient) -> None:
    with app.state.services.db.write() as session:
        workers.store_models(session, {"Qwen/Qwen3-0.6B": False}, Queue.GENERATE)

    listed = client.get("/v1/models").json()

    names = [model["id"] for model in listed["data"]]
    assert listed["object"] == "list"
    assert {"all-minilm-l6-v2", "text-embedding-3-small", "Qwen/Qwen3-0.6B"} <= set(names)
    assert len(names) == len(set(names))
    plain = [model for model in listed["data"] if "license" not in model]
    assert {tuple(sorted(model)) for model in plain} == {("created", "id", "object", "owned_by")}
    assert {"gpt-4o-mini", "Qwen/Qwen3-0.6B"} <= {model["id"] for model in plain}
    assert all(0 < model["created"] <= time.time() for model in listed["data"])


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen%2FQwen3-0.6B"])
def test_a_name_with_a_slash_is_found_encoded_or_not(app: FastAPI, client: TestClient, name: str) -> None:
    with app.state.services.db.write() as session:
        workers.store_models(session, {"Qwen/Qwen3-0.6B": False}, Queue.GENERATE)

    assert client.get(f"/v1/models/{name}").json()["id"] == "Qwen/Qwen3-0.6B"


def test_embedding_model_shows_its_metadata(client: TestClient) -> None:
    for name in ("all-minilm-l6-v2", "text-embedding-3-small"):
        shown = client.get(f"/v1/models/{name}").json()

        assert (shown["id"], shown["max_model_len"], shown["license"]) == (name, 256, "apache-2.0")
        assert "ms_marco" in shown["training_data"]
        assert shown.keys() & {"query_prompt", "passage_prompt", "cost_per_million_tokens"} == set()


EMBEDS = """
models:
  e:
    source: {urls: ['http://127.0.0.1:9/v1']}
    engine: http
    endpoints: [/v1/embeddings]
    engine_args: {query_prompt: "query: ", passage_prompt: "passage: "}
    license: mit
    training_data: [mine]
    cost_per_million_tokens: 0.02
"""


def test_models_file_metadata_is_shown(make_app: Callable[..., FastAPI], tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(EMBEDS)
    app = make_app(models_file=str(tmp_path / "models.yaml"))

    shown = client_of(app, make_key(app)).get("/v1/models/e").json()

    said = {"license": "mit", "training_data": ["mine"], "cost_per_million_tokens": 0.02}
    prompts = {"query_prompt": "query: ", "passage_prompt": "passage: "}
    basis = {"id": "e", "object": "model", "created": shown["created"], "owned_by": "nightmill"}
    assert shown == basis | said | prompts


def test_an_unknown_model_is_404(client: TestClient) -> None:
    for answer in (client.get("/v1/models/nothing"), client.delete("/v1/models/ft:a%2Fb:c")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


def test_the_deployment_s_models_cannot_be_deleted_by_a_project(client: TestClient) -> None:
    answer = client.delete("/v1/models/all-minilm-l6-v2")

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "model_not_deletable"
    assert client.get("/v1/models/all-minilm-l6-v2").status_code == 200


def test_changed_models_file_is_reloaded(make_app: Callable[..., FastAPI], tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    text = "models:\n  {name}:\n    source: {{urls: ['http://127.0.0.1:9/v1']}}\n    engine: http\n"
    file.write_text(text.format(name="first"))
    app = make_app(models_file=str(file))
    client = client_of(app, make_key(app))
    assert client.get("/v1/models/first").status_code == 200

    file.write_text(text.format(name="second-name"))

    assert client.get("/v1/models/first").status_code == 404
    assert client.get("/v1/models/second-name").status_code == 200


def test_model_list_shows_serving_state_and_reason(app: FastAPI, client: TestClient) -> None:
    packaged, alias, embedder = "smollm2-135m-instruct", "gpt-4o-mini", "all-minilm-l6-v2"
    with app.state.services.db.write() as session:
        workers.register(session, worker_row("w", Queue.GENERATE, packaged))
        workers.store_models(session, {"remote": False}, Queue.GENERATE)
        sample_jobs.quarantined(session, embedder)

    def served() -> dict[str, dict[str, Any]]:
        listed = client.get("/v1/models", params={"include": "serving"}).json()["data"]
        return {model["id"]: model["serving"] for model in listed}

    before = served()
    with app.state.services.db.write() as session:
        pauses.pause(session, pauses.Scope.MODEL, packaged, actor="operator")
    paused = served()[alias]

    serving = {"model": packaged, "state": "ready", "queue": "gpu.generate", "workers": 1}
    assert before[packaged] == before[alias] == serving
    assert (before[embedder]["state"], before["remote"]["state"]) == ("quarantined", "unreachable")
    assert "died too often" in before[embedder]["reason"]
    assert (paused["state"], paused["reason"]) == ("paused", "the operator has paused it")


def test_loading_model_shows_start_time_and_phase(app: FastAPI, client: TestClient) -> None:
    name = "smollm2-135m-instruct"
    how = {"entry": "e", "up": False, "since": 7.5, "phase": "reading the weights"}
    with app.state.services.db.write() as session:
        workers.register(session, worker_row("w", Queue.GENERATE, name))
        workers.heartbeat(session, "w", engines={name: how})

    listed = client.get("/v1/models", params={"include": "serving"}).json()["data"]
    [serving] = [model["serving"] for model in listed if model["id"] == name]

    assert (serving["state"], serving["loading_since"], serving["model"]) == ("loading", 7, name)
    assert serving["reason"] == "a worker is loading it (reading the weights)"
    assert client.get("/v1/models", params={"include": "odd"}).json()["error"]["param"] == "include"


def test_an_alias_is_served_by_its_model(client: TestClient) -> None:
    listed = client.get("/v1/models", params={"include": "serving"}).json()["data"]

    served_by = {model["id"]: model["serving"]["model"] for model in listed}

    assert served_by["text-embedding-3-small"] == served_by["all-minilm-l6-v2"] == "all-minilm-l6-v2"


def test_a_tuned_model_shows_its_origin_and_the_evaluations_of_it(app: FastAPI, client: TestClient) -> None:
    job = create(client, seed=7, hyperparameters={"n_epochs": 2})
    name, db = registered(app, job), app.state.services.db
    stored = {
        "seed": 7, "parent": None, "hyperparameters": {"n_epochs": 2, "batch_size": "auto"}, "training": {"rank": 16},
        "run": {"step": 40, "dtype": "bfloat16", "probe_spread": 0.031}, "files": {"adapter_config.json": "1" * 64},
    }  # fmt: skip
    with db.write() as session:
        session.execute(update(TunedModel).values(manifest=stored))
    criterion = {"type": "string_check", "name": "n", "input": "{{item.a}}", "operation": "eq", "reference": "a"}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    made = client.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [criterion]}).json()
    source = {
        "type": "completions", "model": name, "source": {"type": "file_content", "content": [{"item": {"a": "a"}}]},
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.a}}"}]},
    }  # fmt: skip
    run = client.post(f"/v1/evals/{made['id']}/runs", json={"name": "first", "data_source": source}).json()

    answer = client.get(f"/v1/models/{name}").json()

    manifest = answer["manifest"]
    assert OpenAIModel.model_validate(answer).id == name
    assert (manifest["state"], manifest["base"], manifest["method"]) == ("ready", "smollm2-135m-instruct", "lora")
    assert (manifest["fine_tuning_job"], manifest["seed"], manifest["step"]) == (job["id"], 7, 40)
    assert (manifest["run"], manifest["files"]) == (stored["run"], stored["files"])
    assert manifest["hyperparameters"]["n_epochs"] == 2
    assert [(data["role"], data["file_id"]) for data in manifest["data"]] == [("training", job["training_file"])]
    assert [(one["id"], one["eval_id"], one["name"]) for one in manifest["evaluations"]] == [
        (run["id"], made["id"], "first")
    ]
    assert run["model"] == name

    with db.write() as session:
        model = session.query(TunedModel).one()
        models.fail_probe(session, model.id, "log-probabilities differ", 0)
    failed = client.get(f"/v1/models/{name}").json()["manifest"]
    assert (failed["state"], failed["probe_failure"]) == ("failed_probe", "log-probabilities differ")
    assert all("manifest" not in listed for listed in client.get("/v1/models").json()["data"])


def test_a_project_with_a_permission_sees_the_checkpoint_and_not_its_origin(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    name = registered(app, create(client), step=4)
    with app.state.services.db.write() as session:
        project = session.query(Project).filter(Project.id != session.query(TunedModel).one().project_id).first()
        models.permit(session, name, [project.id], created_by="test")

    assert "manifest" in client.get(f"/v1/models/{name}").json()
    assert set(stranger.get(f"/v1/models/{name}").json()) == {"id", "object", "created", "owned_by"}
