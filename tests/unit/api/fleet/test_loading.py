"""Interactive clients, jobs and the readiness check tell an engine that loads from a model without a worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.clock import now
from jobs.fleet import workers
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from tests.support import tuned_adapters
from tests.support.web import make_key
from tests.support.worker_rows import worker_row
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import client_of

MODELS = """
models:
  tiny: {source: {packaged: smollm2-135m-instruct}, engine: vllm, aliases: [small]}
  remote: {source: {urls: ["http://127.0.0.1:9"]}, engine: http}
"""
CHAT = {"model": "small", "messages": [{"role": "user", "content": "Hello."}]}
LOADING = {"tiny": {"entry": "e", "up": False, "since": 0.0, "phase": "reading the weights"}}


@pytest.fixture
def app(make_app: Callable[..., FastAPI], tmp_path: Path) -> FastAPI:
    (tmp_path / "models.yaml").write_text(MODELS)
    return make_app(models_file=str(tmp_path / "models.yaml"))


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return client_of(app, make_key(app))


def start_worker(app: FastAPI, worker_id: str = "gpu-1", **changes: Any) -> None:
    """Register a worker that loads `tiny` since 40 seconds, with `changes`."""
    engines = {name: {**how, "since": now() - 40} for name, how in LOADING.items()}
    facts = {"state": "starting", "created_at": now() - 60, "seen_at": now(), "engines": engines, **changes}
    with app.state.services.db.write() as session:
        workers.register(session, worker_row(worker_id, **facts))


def run_job(app: FastAPI, client: TestClient, model: str, waiting_for: str | None = None) -> str:
    """Create a job that runs with `model`; return its id."""
    job_id: str = create(client, "f")["id"]
    with app.state.services.db.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.model, job.queue = JobState.RUNNING, model, "gpu.generate"
    if waiting_for:
        with app.state.services.db.write() as session:
            ledger.wait_for(session, job_id, waiting_for)
    return job_id


@pytest.mark.parametrize("model", ["tiny", "small", "remote"])
@pytest.mark.parametrize("stream", [False, True])
def test_request_for_loading_model_returns_503_with_retry_after(
    app: FastAPI, client: TestClient, model: str, *, stream: bool
) -> None:
    start_worker(app)

    answer = client.post("/v1/chat/completions", json={**CHAT, "model": model, "stream": stream})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (503, "model_loading", "server_error")
    assert answer.headers["Retry-After"] == "10"
    assert error["message"].startswith(f"The model '{model}' is loading (reading the weights), 4")
    assert error["message"].endswith(" s so far. Ask again in a moment.")


def test_model_reloading_after_engine_death_is_reported_as_loading(app: FastAPI, client: TestClient) -> None:
    start_worker(app, state="ready", models=["tiny"])

    assert client.post("/v1/chat/completions", json=CHAT).json()["error"]["code"] == "model_loading"


def test_unloaded_model_is_reported_without_worker(app: FastAPI, client: TestClient) -> None:
    start_worker(app, queues=["gpu.embed"])

    answer = client.post("/v1/chat/completions", json=CHAT)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert answer.json()["error"]["message"] == "No live worker serves the model 'small' now."


def test_error_for_unserved_full_tuned_model_names_start_command(app: FastAPI, client: TestClient) -> None:
    start_worker(app)
    services, name = app.state.services, "ft:small:default::abc"
    tuned_adapters.tuned_model(services.db, services.storage, name, base="small", method="full")

    answer = client.post("/v1/chat/completions", json={**CHAT, "model": name})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert "`nightmill up --with tuned`" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/jobs"])
def test_job_shows_status_of_awaited_model(app: FastAPI, client: TestClient, path: str) -> None:
    job_id = run_job(app, client, "small")

    def status() -> Any:
        shown = client.get(path.format(job_id)).json()
        return shown.get("data", [shown])[0]["model_status"]

    nothing = status()
    with app.state.services.db.write() as session:
        ledger.wait_for(session, job_id, "model")
    absent = status()
    start_worker(app)
    loading = status()
    start_worker(app, "gpu-2", state="ready", models=["tiny"], engines={"tiny": {"entry": "e", "up": True}})
    served = status()

    assert nothing is None
    assert absent == {"status": "no_worker", "model": "tiny", "phase": None, "since": None}
    assert loading.pop("since") == pytest.approx(now() - 40, abs=30)
    assert loading == {"status": "loading", "model": "tiny", "phase": "reading the weights"}
    assert served["status"] == "no_worker", "the dispatcher has not looked again yet"


def test_a_job_that_waits_for_something_else_does_not_name_its_model(app: FastAPI, client: TestClient) -> None:
    job_id = run_job(app, client, "tiny", "pause")
    start_worker(app)

    assert client.get(f"/v1/jobs/{job_id}").json()["model_status"] is None


def test_status_endpoint_lists_loading_model_and_phase_of_each_queue(app: FastAPI, client: TestClient) -> None:
    start_worker(app)
    start_worker(app, "embed-1", queues=["gpu.embed"], engines=None)

    found = {one["queue"]: (one["model"], one["phase"]) for one in client.get("/statusz").json()["loading"]}

    assert found == {"gpu.generate": ("tiny", "reading the weights"), "gpu.embed": ("", "starting its worker")}
