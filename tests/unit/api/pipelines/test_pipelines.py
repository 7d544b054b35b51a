"""Pipelines over HTTP: created, shown, cancelled, resumed and refused; steps are released as a worker does it."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.errors import ClaimLost, InvalidRequest, PermissionDenied
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.pipelines import pipelines
from jobs.queues import Task
from jobs.security.tables import ApiKey
from tests.support import sample_jobs
from tests.support.pipeline_requests import (
    batch_step,
    create_pipeline,
    error_of,
    make_eval,
    run_step,
    tune_and_evaluate,
    tuning_step,
)
from tests.support.tuning_requests import BASE, registered, upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of


class Steps:
    """Do by hand what workers do to the steps of a pipeline."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.services = app, app.state.services

    def release(self, step: dict[str, Any]) -> str:
        """Plan a step; return the id of the job that it has made."""
        claim = sample_jobs.claim_job(self.services.db, step["id"], Task.PLAN)
        with self.services.db.write() as session:
            pipelines.release(session, claim, self.services.config, self.services.registry())
        with self.services.db.read() as session:
            return pipelines.jobs_by_step(session, [step["id"]])[step["id"]].id

    def complete(self, job_id: str) -> None:
        """End a job, whatever it does; what waits for it is released in the same transaction."""
        claim = sample_jobs.claim_job(self.services.db, job_id, Task.PLAN)
        with self.services.db.write() as session:
            ledger.begin_running(session, claim, total=1, model=None, queue="q")
        sample_jobs.close(self.services.db, job_id, completed=1)

    def fail(self, job_id: str) -> None:
        claim = sample_jobs.claim_job(self.services.db, job_id, Task.PLAN)
        with self.services.db.write() as session:
            ledger.reject(session, claim, [{"code": "bad_rows", "message": "Line 3.", "line": 3, "param": None}])

    def job(self, job_id: str) -> Job:
        return sample_jobs.job(self.services.db, job_id)

    def ids(self) -> set[str]:
        with self.services.db.read() as session:
            return {job.id for job in session.query(Job)}


@pytest.fixture
def steps(app: FastAPI) -> Steps:
    return Steps(app)


def statuses(client: TestClient, pipeline: dict[str, Any]) -> list[str]:
    return [step["status"] for step in client.get(f"/v1/pipelines/{pipeline['id']}").json()["steps"]]


def test_pipeline_is_shown_with_its_steps(client: TestClient) -> None:
    made = create_pipeline(client, *tune_and_evaluate(client), name="weekly", metadata={"team": "support"})

    assert made["id"].startswith("pipe_")
    assert (made["object"], made["name"], made["status"], made["ended_at"]) == (
        "pipeline", "weekly", "in_progress", None,
    )  # fmt: skip
    train, check = made["steps"]
    assert (train["name"], train["kind"], train["after"], train["status"], train["job_id"]) == (
        "train", "fine_tuning", [], "waiting", None,
    )  # fmt: skip
    assert (check["kind"], check["after"]) == ("eval_run", ["train"])  # its reference makes it wait
    assert made["metadata"] == {"team": "support"}
    assert client.get(f"/v1/pipelines/{made['id']}").json() == made
    assert client.get("/v1/pipelines").json()["data"] == [made]
    assert client.get(f"/v1/jobs/{made['id']}").json()["name"] == "weekly"


def test_list_of_a_status_has_the_pipelines_of_that_status_alone(client: TestClient, steps: Steps) -> None:
    live, ended = (create_pipeline(client, batch_step("a", upload(client, "batch")))["id"] for _ in range(2))
    (step,) = client.get(f"/v1/pipelines/{ended}").json()["steps"]
    for job_id in (steps.release(step), step["id"], ended):
        steps.complete(job_id)

    def listed(status: str) -> list[str]:
        return [row["id"] for row in client.get("/v1/pipelines", params={"status": status}).json()["data"]]

    assert (listed("in_progress"), listed("completed"), listed("failed")) == ([live], [ended], [])
    refused = client.get("/v1/pipelines", params={"status": "running"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "status")


def test_step_makes_its_job_from_the_results_of_earlier_steps(app: FastAPI, client: TestClient, steps: Steps) -> None:
    made = create_pipeline(client, *tune_and_evaluate(client))
    train, check = made["steps"]

    tuning = steps.release(train)
    assert statuses(client, made) == ["in_progress", "waiting"]
    model = registered(app, {"id": tuning})
    steps.complete(tuning)
    steps.complete(train["id"])
    run = steps.release(check)

    assert statuses(client, made) == ["completed", "in_progress"]
    job = steps.job(run)
    assert (job.payload["sampled"]["model"], job.parent_id) == (model, check["id"])
    shown = client.get(f"/v1/evals/{job.payload['eval_id']}/runs/{run}").json()
    assert shown["data_source"]["model"] == model
    assert shown["data_source"]["input_messages"]["template"][0]["content"] == "{{ item.question }}"


def test_ingestion_adds_its_files_to_the_store(client: TestClient, steps: Steps) -> None:
    store = client.post("/v1/vector_stores", json={"name": "manuals"}).json()["id"]
    file_id = upload(client, "user_data")
    request = {"vector_store_id": store, "file_ids": [file_id, file_id], "attributes": {"team": "support"}}
    (step,) = create_pipeline(client, {"name": "read", "kind": "ingestion", "request": request})["steps"]

    made = steps.release(step)

    batch = client.get(f"/v1/vector_stores/{store}/file_batches/{made}").json()
    assert (batch["file_counts"]["total"], batch["status"]) == (1, "in_progress")
    assert client.get(f"/v1/vector_stores/{store}/files/{file_id}").json()["attributes"] == {"team": "support"}


@pytest.mark.parametrize(
    ("kind", "request_", "code", "param"),
    [
        ("ingestion", {"vector_store_id": "vs_none", "file_ids": ["file-a"]}, "not_found", "vector_store_id"),
        ("ingestion", {"vector_store_id": "vs_none", "file_ids": []}, "array_below_min_length", "file_ids"),
        ("dataset", {"dataset": "none", "sources": [{"type": "file_id", "id": "f"}]}, "dataset_not_found", "dataset"),
        ("dataset", {"dataset": "own", "sources": [{"type": "file_id", "id": "f"}]}, "file_not_found", "sources[0].id"),
        (
            "dataset",
            {"dataset": "own", "sources": [{"type": "stored_completions"}]},
            "unsupported_value",
            "sources[0].type",
        ),
        (
            "dataset",
            {"dataset": "own", "sources": [{"type": "batch", "batch_id": "{{a.output_file_id}}"}]},
            "step_not_found",
            "sources[0].batch_id",
        ),
    ],
)
def test_step_of_files_or_rows_that_there_are_not_is_refused(
    client: TestClient, kind: str, request_: dict[str, Any], code: str | None, param: str
) -> None:
    client.post("/v1/datasets", json={"name": "own"})

    status, given, path = error_of(client, {"name": "b", "kind": kind, "request": request_})

    assert (status in (400, 404), given, path) == (True, code, f"steps[0].request.{param}")


def test_pipeline_completes_with_its_last_step(client: TestClient, steps: Steps) -> None:
    made = create_pipeline(client, batch_step("a", upload(client, "batch")))
    (step,) = made["steps"]
    steps.complete(steps.release(step))

    steps.complete(step["id"])
    steps.complete(made["id"])

    shown = client.get(f"/v1/pipelines/{made['id']}").json()
    assert (shown["status"], statuses(client, made)) == ("completed", ["completed"])
    assert shown["ended_at"] >= shown["created_at"]
    assert sample_jobs.told(steps.services.db, made["id"])[-1][1] == "pipeline.completed"


def test_step_that_is_released_twice_makes_a_single_job(client: TestClient, steps: Steps) -> None:
    """A worker stands still after its claim; another one takes the step over, and then the first goes on."""
    (step,) = create_pipeline(client, batch_step("a", upload(client, "batch")))["steps"]
    late = sample_jobs.claim_job(steps.services.db, step["id"], Task.PLAN)
    with steps.services.db.write() as session:
        assert ledger.release(session, step["id"], late.epoch)
    job_id = steps.release(step)
    before = steps.ids()

    with pytest.raises(ClaimLost), steps.services.db.write() as session:
        pipelines.release(session, late, steps.services.config, steps.services.registry())

    assert steps.ids() == before
    assert steps.job(step["id"]).waiting_for == "job"
    assert steps.job(job_id).state == JobState.QUEUED


def test_death_of_a_worker_before_the_commit_leaves_the_step_to_the_next_worker(
    client: TestClient, steps: Steps
) -> None:
    (step,) = create_pipeline(client, batch_step("a", upload(client, "batch")))["steps"]
    claim = sample_jobs.claim_job(steps.services.db, step["id"], Task.PLAN)
    before = steps.ids()
    with sample_jobs.rolled_back(steps.services.db) as session:
        pipelines.release(session, claim, steps.services.config, steps.services.registry())
    assert steps.ids() == before

    with steps.services.db.write() as session:
        assert ledger.release(session, step["id"], claim.epoch)

    assert steps.release(step) not in before


def test_cancelled_step_makes_no_job(client: TestClient, steps: Steps) -> None:
    made = create_pipeline(client, batch_step("a", upload(client, "batch")))
    claim = sample_jobs.claim_job(steps.services.db, made["steps"][0]["id"], Task.PLAN)
    with steps.services.db.write() as session:
        ledger.cancel(session, claim.job.id, actor="test")

    with pytest.raises(ClaimLost), steps.services.db.write() as session:
        pipelines.release(session, claim, steps.services.config, steps.services.registry())


def test_step_of_a_key_without_the_permission_makes_no_job(app: FastAPI, client: TestClient, steps: Steps) -> None:
    (step,) = create_pipeline(client, batch_step("a", upload(client, "batch")))["steps"]
    with app.state.services.db.write() as session:
        session.get_one(ApiKey, steps.job(step["id"]).key_id).scopes = ["api.all.read"]
    claim = sample_jobs.claim_job(steps.services.db, step["id"], Task.PLAN)

    with pytest.raises(PermissionDenied) as denial, steps.services.db.write() as session:
        pipelines.release(session, claim, steps.services.config, steps.services.registry())

    assert denial.value.code == "missing_scope"


def test_missing_result_is_named(client: TestClient, steps: Steps) -> None:
    first = batch_step("a", upload(client, "batch"))
    second = batch_step("b", upload(client, "batch"), metadata={"errors": "{{a.error_file_id}}"})
    a, b = create_pipeline(client, first, second)["steps"]
    steps.complete(steps.release(a))
    steps.complete(a["id"])

    with pytest.raises(InvalidRequest) as refusal:
        steps.release(b)

    assert refusal.value.message == "The step 'a' has no 'error_file_id'."


def test_resumed_pipeline_keeps_completed_steps(app: FastAPI, client: TestClient, steps: Steps) -> None:
    made = create_pipeline(client, *tune_and_evaluate(client), name="weekly")
    train, check = made["steps"]
    tuning = steps.release(train)
    model = registered(app, {"id": tuning})
    steps.complete(tuning)
    steps.complete(train["id"])
    steps.fail(check["id"])
    with app.state.services.db.write() as session:
        job = ledger.lock(session, made["id"])
        assert job is not None
        error = ledger.dependency_error(session, job)
        assert error is not None
        ledger.fail_dependent(session, job, error, actor="test")
    assert client.get(f"/v1/pipelines/{made['id']}").json()["status"] == "failed"
    assert statuses(client, made) == ["completed", "failed"]

    answers = [
        client.post(f"/v1/pipelines/{made['id']}/resume", headers={"Idempotency-Key": "again"}).json() for _ in range(2)
    ]

    resumed, replayed = answers
    assert resumed == replayed
    assert (resumed["name"], resumed["resumed_from"], resumed["status"]) == ("weekly", made["id"], "in_progress")
    assert resumed["steps"][0] == client.get(f"/v1/pipelines/{made['id']}").json()["steps"][0]
    assert resumed["steps"][1]["id"] != check["id"]
    assert steps.job(steps.release(resumed["steps"][1])).payload["sampled"]["model"] == model


def test_pipeline_that_goes_on_is_not_resumed(client: TestClient) -> None:
    made = create_pipeline(client, batch_step("a", upload(client, "batch")))

    answer = client.post(f"/v1/pipelines/{made['id']}/resume")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")


def test_repeated_create_makes_nothing(client: TestClient) -> None:
    body = {"steps": [batch_step("a", upload(client, "batch"))]}
    made = [client.post("/v1/pipelines", json=body, headers={"Idempotency-Key": "one"}).json() for _ in range(2)]

    assert made[0] == made[1]
    assert len(client.get("/v1/pipelines").json()["data"]) == 1


def test_pipeline_of_another_project_is_not_found(client: TestClient, stranger: TestClient) -> None:
    made = create_pipeline(client, batch_step("a", upload(client, "batch")))
    path = f"/v1/pipelines/{made['id']}"

    answers = [stranger.get(path), stranger.post(f"{path}/cancel"), stranger.post(f"{path}/resume")]

    assert {answer.status_code for answer in answers} == {404}
    assert stranger.get("/v1/pipelines").json()["data"] == []
    assert statuses(client, made) == ["waiting"]


def test_cancelled_pipeline_ends_and_is_cancelled_once(client: TestClient, steps: Steps) -> None:
    made = create_pipeline(client, batch_step("a", upload(client, "batch")))

    answers = [client.post(f"/v1/pipelines/{made['id']}/cancel").json()["status"] for _ in range(2)]
    sample_jobs.close(steps.services.db, made["id"])

    assert answers == ["cancelling", "cancelling"]
    assert client.get(f"/v1/pipelines/{made['id']}").json()["status"] == "cancelled"


def test_key_needs_the_permissions_of_all_steps(app: FastAPI, client: TestClient) -> None:
    body = {"steps": [batch_step("a", upload(client, "batch"))]}
    key = make_key(app)
    with app.state.services.db.write() as session:
        row = session.query(ApiKey).order_by(ApiKey.created_at.desc()).first()
        assert row is not None
        row.scopes = ["api.pipelines.write"]

    answer = client_of(app, key).post("/v1/pipelines", json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope")
    assert "api.batch.write" in answer.json()["error"]["message"]


def test_graph_of_a_pipeline_has_its_steps(client: TestClient) -> None:
    made = create_pipeline(client, *tune_and_evaluate(client))

    graph = client.get(f"/v1/jobs/{made['id']}/graph").json()

    after = {job["id"]: job["after"] for job in graph["jobs"]}
    train, check = (step["id"] for step in made["steps"])
    assert after[check] == [train]
    assert set(after[made["id"]]) == {train, check}


@pytest.mark.parametrize(
    ("second", "code", "param"),
    [
        ({"metadata": {"of": "{{c.id}}"}}, "step_not_found", "steps[1].request.metadata.of"),
        ({"metadata": {"of": "{{a}}"}}, "result_not_found", "steps[1].request.metadata.of"),
        ({"metadata": {"of": "{{a.fine_tuned_model}}"}}, "result_not_found", "steps[1].request.metadata.of"),
        ({"metadata": {"of": "{{b.id}}"}}, "circular_steps", "steps[1].after"),
        ({"after": ["c"]}, "step_not_found", "steps[1].after"),
        ({"after": ["b"]}, "circular_steps", "steps[1].after"),
        ({"completion_window": "soon"}, "invalid_value", "steps[1].request.completion_window"),
        ({"input_file_id": "file-nothing"}, "file_not_found", "steps[1].request.input_file_id"),
    ],
)
def test_step_that_never_could_run_is_refused(
    client: TestClient, second: dict[str, Any], code: str, param: str
) -> None:
    file_id = upload(client, "batch")
    step = batch_step("b", **({"file_id": second.pop("input_file_id", file_id)} | second))

    assert error_of(client, batch_step("a", file_id), step) == (400, code, param)


def test_circle_of_steps_is_refused(client: TestClient) -> None:
    file_id = upload(client, "batch")
    first = batch_step("a", file_id, metadata={"of": "{{b.id}}"})

    assert error_of(client, first, batch_step("b", file_id, after=["a"])) == (400, "circular_steps", "steps[0].after")


def test_names_of_steps_differ(client: TestClient) -> None:
    step = batch_step("a", upload(client, "batch"))

    assert error_of(client, step, step) == (400, "duplicate_name", "steps[1].name")


@pytest.mark.parametrize("name", ["item", "sample", "", "A", "a.b", "a" * 33, "-a"])
def test_unusable_name_of_a_step_is_refused(client: TestClient, name: str) -> None:
    status, _, param = error_of(client, batch_step(name, upload(client, "batch")))

    assert (status, param) == (400, "steps[0].name")


def test_files_and_models_of_later_steps_are_checked_at_once(client: TestClient) -> None:
    wrong, right, eval_id = upload(client, "batch"), upload(client), make_eval(client)

    assert error_of(client, tuning_step("a", wrong)) == (
        400, "invalid_file_purpose", "steps[0].request.training_file",
    )  # fmt: skip
    assert error_of(client, tuning_step("a", right, model="none")) == (
        400, "model_not_available", "steps[0].request.model",
    )  # fmt: skip
    assert error_of(client, run_step("a", eval_id, wrong, BASE)) == (
        400, "invalid_file_purpose", "steps[0].request.data_source.source.id",
    )  # fmt: skip
    assert error_of(client, run_step("a", "eval_none", wrong, BASE))[::2] == (404, "steps[0].request.eval_id")
    items = run_step("a", eval_id, wrong, BASE)
    items["request"]["data_source"]["source"] = {"type": "file_content", "content": [{"item": {"question": "?"}}]}
    assert error_of(client, items) == (400, "unsupported_value", "steps[0].request.data_source.source.type")


def test_fields_of_jobs_that_pipelines_have_themselves_are_refused(client: TestClient) -> None:
    hook = batch_step("a", upload(client, "batch"), webhook={"url": "https://example.org"})

    assert error_of(client, hook)[::2] == (400, "steps[0].request.webhook")
    assert error_of(client, tuning_step("a", upload(client), after=["ftjob-1"]))[::2] == (
        400, "steps[0].request.after",
    )  # fmt: skip


def test_sizes_of_pipelines_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = upload(client, "batch")
    many = [batch_step(f"s{n}", file_id) for n in range(pipelines.MAX_STEPS + 1)]

    assert error_of(client, *many)[::2] == (400, "steps")
    assert error_of(client)[::2] == (400, "steps")
    monkeypatch.setattr(pipelines, "MAX_BYTES", 500)
    assert error_of(client, *many[:9]) == (400, "pipeline_too_large", "steps")


def test_live_pipelines_of_a_project_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    step = batch_step("a", upload(client, "batch"))
    monkeypatch.setattr(pipelines, "MAX_LIVE", 1)
    create_pipeline(client, step)

    answer = client.post("/v1/pipelines", json={"steps": [step]})

    assert answer.status_code == 429
