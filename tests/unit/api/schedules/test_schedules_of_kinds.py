"""Schedules of jobs of every kind over HTTP: created, fired as the dispatcher does it, and refused."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from jobs.clock import now
from jobs.evals.tables import EvalRun
from jobs.files.tables import File
from jobs.ledger.tables import Job
from jobs.pipelines import pipelines
from jobs.schedules import schedules
from jobs.schedules.tables import Schedule, ScheduleFile
from jobs.security.tables import ApiKey
from tests.support.pipeline_requests import batch_step, make_eval, make_monitor, run_step, tuning_step
from tests.support.tuning_requests import upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of
from workers.dispatcher.maintenance import Maintenance
from workers.dispatcher.retention import Retention

MODEL: Final = "smollm2-135m-instruct"


def request_of(client: TestClient, kind: str) -> dict[str, Any]:
    """Return a valid request for a job of a kind, as its own route takes it, whose objects exist."""
    return _REQUESTS[kind](client)


def batch_request(client: TestClient) -> dict[str, Any]:
    return {**batch_step("", upload(client, "batch"))["request"], "metadata": {"run": "nightly"}}


def tuning_request(client: TestClient) -> dict[str, Any]:
    return dict(tuning_step("", upload(client), suffix="nightly")["request"])


def run_request(client: TestClient) -> dict[str, Any]:
    return dict(run_step("", make_eval(client), upload(client, "evals"), MODEL)["request"]) | {"name": "nightly"}


def dataset_request(client: TestClient) -> dict[str, Any]:
    name = client.post("/v1/datasets", json={"name": "tickets"}).json()["name"]
    return {"dataset": name, "sources": [{"type": "file_id", "id": upload(client, "user_data")}]}


def ingestion_request(client: TestClient) -> dict[str, Any]:
    store = client.post("/v1/vector_stores", json={"name": "manuals"}).json()["id"]
    return {"vector_store_id": store, "file_ids": [upload(client, "user_data")], "attributes": {"team": "support"}}


def drift_request(client: TestClient) -> dict[str, Any]:
    source = {"type": "file", "file_id": upload(client, "user_data")}
    return {"monitor_id": make_monitor(client), "source": source}


def pipeline_request(client: TestClient) -> dict[str, Any]:
    train = tuning_step("train", upload(client))
    check = run_step("check", make_eval(client), upload(client, "evals"), "{{train.fine_tuned_model}}")
    return {"name": "weekly", "steps": [train, check], "metadata": {"team": "support"}}


_REQUESTS: Final[Mapping[str, Callable[[TestClient], dict[str, Any]]]] = {
    "batch": batch_request,
    "fine_tuning": tuning_request,
    "eval_run": run_request,
    "dataset": dataset_request,
    "ingestion": ingestion_request,
    "drift_baseline": drift_request,
    "drift_check": drift_request,
    "pipeline": pipeline_request,
}
KINDS: Final = list(_REQUESTS)


def body_of(client: TestClient, kind: str, **changes: Any) -> dict[str, Any]:
    return {"cron": "0 3 * * *", "job": {"type": kind, **request_of(client, kind), **changes}}


def create(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/schedules", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def fire(app: FastAPI, *, rounds: int = 1) -> None:
    """Let all schedules be due once, and the dispatcher look for due ones this often."""
    services = app.state.services
    with services.db.write() as session:
        session.execute(update(Schedule).values(next_at=now() - 1))
    maintenance = Maintenance(services.config, services.db, services.storage, now, services.registry)
    for _ in range(rounds):
        maintenance.run()


def jobs_of(client: TestClient, schedule: dict[str, Any]) -> list[dict[str, Any]]:
    return list(client.get("/v1/jobs", params={"schedule_id": schedule["id"]}).json()["data"])


@pytest.mark.parametrize("kind", KINDS)
def test_due_schedule_submits_its_job_once(app: FastAPI, client: TestClient, kind: str) -> None:
    schedule = create(client, body_of(client, kind))

    fire(app, rounds=3)

    [job] = jobs_of(client, schedule)
    shown = client.get(f"/v1/schedules/{schedule['id']}").json()
    assert (shown["last_job_id"], shown["last_error"]) == (job["id"], None)
    assert shown["last_batch_id"] == (job["id"] if kind == "batch" else None)
    assert shown["next_run_at"] > now()
    with app.state.services.db.read() as session:
        keys = set(session.scalars(select(Job.key_id)))
        assert keys == {session.get_one(Schedule, schedule["id"]).key_id}  # also of jobs beside, as a run's samples


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_shows_the_request_of_its_kind(client: TestClient, kind: str) -> None:
    body = body_of(client, kind)

    schedule = create(client, body)

    assert schedule["kind"] == kind
    if kind == "batch":
        assert schedule["job"] is None
        assert schedule["batch"]["input_file_id"] == body["job"]["input_file_id"]
    else:
        assert (schedule["job"], schedule["batch"]) == (body["job"], None)
    [listed] = client.get("/v1/schedules").json()["data"]
    assert (listed["kind"], "job" in listed) == (kind, False)
    for verb in ("pause", "resume"):
        assert client.post(f"/v1/schedules/{schedule['id']}/{verb}").json()["job"] == schedule["job"]


def test_each_time_has_a_pipeline_of_its_own(app: FastAPI, client: TestClient) -> None:
    schedule = create(client, body_of(client, "pipeline"))

    for _ in range(2):
        fire(app)

    made = client.get("/v1/pipelines").json()["data"]
    assert [pipeline["name"] for pipeline in made] == ["weekly", "weekly"]
    assert {pipeline["id"] for pipeline in made} == {job["id"] for job in jobs_of(client, schedule)}
    assert made[0]["steps"][1]["after"] == ["train"]
    assert made[0]["metadata"] == {"team": "support"}
    assert len({step["id"] for pipeline in made for step in pipeline["steps"]}) == 4


def test_pipeline_beyond_the_limit_is_recorded_and_leaves_nothing(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "MAX_LIVE", 1)
    schedule = create(client, body_of(client, "pipeline"))
    fire(app)
    before = client.get("/v1/jobs").json()["data"]

    fire(app)

    shown = client.get(f"/v1/schedules/{schedule['id']}").json()
    assert "pipeline" in shown["last_error"]
    assert [shown["last_job_id"]] == [job["id"] for job in jobs_of(client, schedule)]
    assert client.get("/v1/jobs").json()["data"] == before
    assert shown["next_run_at"] > now()


@pytest.mark.parametrize(
    ("kind", "path", "error"),
    [
        ("batch", "/v1/files/{input_file_id}", "No file found"),
        ("fine_tuning", "/v1/files/{training_file}", "no file"),
        ("eval_run", "/v1/evals/{eval_id}", "No eval found"),
        ("dataset", "/v1/datasets/{dataset}", "No dataset found"),
        ("ingestion", "/v1/vector_stores/{vector_store_id}", "No vector store found"),
        ("drift_baseline", "/v1/drift_monitors/{monitor_id}", "No drift monitor found"),
        ("drift_check", "/v1/drift_monitors/{monitor_id}", "No drift monitor found"),
    ],
)
def test_schedule_with_deleted_object_records_the_error_and_stays_active(
    app: FastAPI, client: TestClient, kind: str, path: str, error: str
) -> None:
    body = body_of(client, kind)
    schedule = create(client, body)
    assert client.delete(path.format(**body["job"])).status_code in (200, 204)
    with app.state.services.db.read() as session:
        runs = len(session.scalars(select(EvalRun.id)).all())

    fire(app, rounds=2)

    shown = client.get(f"/v1/schedules/{schedule['id']}").json()
    assert error in shown["last_error"]
    assert (shown["status"], shown["last_job_id"], jobs_of(client, schedule)) == ("active", None, [])
    with app.state.services.db.read() as session:
        assert len(session.scalars(select(EvalRun.id)).all()) == runs


@pytest.mark.parametrize("kind", KINDS)
def test_key_needs_the_permission_of_the_kind_too(app: FastAPI, client: TestClient, kind: str) -> None:
    body = body_of(client, kind)
    schedule = create(client, body)
    key = make_key(app)
    with app.state.services.db.write() as session:
        session.execute(update(ApiKey).values(scopes=["api.schedules.write", "api.schedules.read"]))

    refused = client_of(app, key).post("/v1/schedules", json=body)
    fire(app)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert schedules.KINDS[kind].permission in refused.json()["error"]["message"]
    shown = client.get(f"/v1/schedules/{schedule['id']}").json()
    assert shown["last_error"] == "The API key, or its owner, may not do this work any more."
    assert shown["last_job_id"] is None


@pytest.mark.parametrize(
    ("kind", "changes", "code", "param"),
    [
        ("batch", {"input_file_id": "file-none"}, "file_not_found", "job.input_file_id"),
        ("batch", {"completion_window": "1x"}, "invalid_value", "job.completion_window"),
        ("fine_tuning", {"training_file": "file-none"}, "file_not_found", "job.training_file"),
        ("fine_tuning", {"model": "of-nobody"}, "model_not_available", "job.model"),
        ("fine_tuning", {"after": ["ftjob-1"]}, "invalid_value", "job.after"),
        ("eval_run", {"eval_id": "eval_none"}, "not_found", "job.eval_id"),
        ("eval_run", {"eval_id": 7}, "invalid_type", "job.eval_id"),
        ("dataset", {"dataset": "none"}, "dataset_not_found", "job.dataset"),
        ("dataset", {"sources": [{"type": "responses"}]}, "unsupported_value", "job.sources[0].type"),
        ("ingestion", {"vector_store_id": "vs_none"}, "not_found", "job.vector_store_id"),
        ("ingestion", {"vector_store_id": "{{read.vector_store_id}}"}, "step_not_found", "job.vector_store_id"),
        ("ingestion", {"file_ids": ["{{x}}"]}, "step_not_found", "job.file_ids[0]"),
        ("drift_baseline", {"monitor_id": "driftmon_none"}, "not_found", "job.monitor_id"),
        ("drift_check", {"monitor_id": "{{a.monitor_id}}"}, "step_not_found", "job.monitor_id"),
        (
            "drift_check",
            {"source": {"type": "file", "file_id": "file-none"}},
            "file_not_found",
            "job.source.file_id",
        ),
        ("pipeline", {"steps": []}, "array_below_min_length", "job.steps"),
        ("pipeline", {"steps": [batch_step("a", "file-none")]}, "file_not_found", "job.steps[0].request.input_file_id"),
        ("pipeline", {"steps": [batch_step("a", "{{b.id}}")]}, "step_not_found", "job.steps[0].request.input_file_id"),
    ],
)
def test_request_that_makes_no_sense_is_refused_and_changes_nothing(
    client: TestClient, kind: str, changes: dict[str, Any], code: str, param: str
) -> None:
    answer = client.post("/v1/schedules", json=body_of(client, kind, **changes))

    error = answer.json()["error"]
    assert (answer.status_code in (400, 404), error["code"], error["param"]) == (True, code, param)
    assert client.get("/v1/schedules").json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "job"),
        ({"job": {"type": "nothing"}}, "job.type"),
        ({"job": {}}, "job.type"),
        ({"job": "batch"}, "job"),
        ({"job": None, "batch": None}, "job"),
    ],
)
def test_schedule_without_a_job_is_refused(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/schedules", json={"cron": "0 3 * * *", **fields})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_schedule_of_two_jobs_is_refused(client: TestClient) -> None:
    body = body_of(client, "batch")

    answer = client.post("/v1/schedules", json={**body, "batch": request_of(client, "batch")})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "job")


@pytest.mark.parametrize("kind", KINDS)
def test_request_with_objects_of_another_project_is_refused(
    client: TestClient, stranger: TestClient, kind: str
) -> None:
    answer = stranger.post("/v1/schedules", json=body_of(client, kind))

    assert answer.status_code in (400, 404)
    assert stranger.get("/v1/schedules").json()["data"] == []


def test_request_that_is_too_large_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.schedules.routes.MAX_BYTES", 500)

    answer = client.post("/v1/schedules", json=body_of(client, "eval_run"))

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "schedule_too_large", "job")


def test_schedule_beyond_the_number_of_a_project_is_refused(
    client: TestClient, stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.schedules.routes.MAX_SCHEDULES", 1)
    create(client, body_of(client, "batch"))

    answer = client.post("/v1/schedules", json=body_of(client, "batch"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "too_many_schedules")
    create(stranger, body_of(stranger, "batch"))


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_schedule_do_not_expire_until_it_is_deleted(app: FastAPI, client: TestClient, kind: str) -> None:
    schedule, other = create(client, body_of(client, kind)), upload(client, "user_data")
    services = app.state.services
    with services.db.write() as session:
        session.execute(update(File).values(expires_at=1.0))
    retention = Retention(services.config, services.db, services.storage)

    retention.run()
    kept = [file["id"] for file in client.get("/v1/files").json()["data"]]
    fire(app)
    client.delete(f"/v1/schedules/{schedule['id']}")
    retention.run()

    assert (len(kept), other in kept) == (2 if kind == "pipeline" else 1, False)
    assert client.get("/v1/files").json()["data"] == []
    with services.db.read() as session:
        assert session.scalars(select(ScheduleFile)).all() == []


def test_batch_of_a_webhook_is_submitted_with_it_and_its_secret_is_shown_once(app: FastAPI, client: TestClient) -> None:
    schedule = create(client, body_of(client, "batch", webhook={"url": "https://8.8.8.8/hook"}))

    fire(app)

    secret = schedule["webhook"]["signing_secret"]
    with app.state.services.db.read() as session:
        job = session.scalars(select(Job).where(Job.schedule_id == schedule["id"])).one()
    assert (job.webhook_url, job.webhook_secret) == ("https://8.8.8.8/hook", secret)
    assert secret not in client.get(f"/v1/schedules/{schedule['id']}").text


def test_repeated_create_makes_single_schedule(client: TestClient) -> None:
    body = body_of(client, "eval_run")

    made = [client.post("/v1/schedules", json=body, headers={"Idempotency-Key": "k"}).json() for _ in range(2)]

    assert made[0] == made[1]
    assert len(client.get("/v1/schedules").json()["data"]) == 1


def test_schedules_wait_while_the_models_are_unknown(app: FastAPI, client: TestClient) -> None:
    schedule = create(client, body_of(client, "eval_run"))
    services = app.state.services
    with services.db.write() as session:
        session.execute(update(Schedule).values(next_at=now() - 1))

    Maintenance(services.config, services.db, services.storage, now, lambda: None).run()
    early = jobs_of(client, schedule)
    Maintenance(services.config, services.db, services.storage, now, services.registry).run()

    assert (early, len(jobs_of(client, schedule))) == ([], 1)
