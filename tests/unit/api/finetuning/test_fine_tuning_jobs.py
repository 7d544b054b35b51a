"""Fine-tuning jobs over HTTP once they are created: lists, states, events, checkpoints, permissions, progress."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.clock import now
from jobs.finetuning import training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneData, FinetunePlan, FinetuneStep
from jobs.ids import new_id
from jobs.ledger.tables import Job
from jobs.registry import models
from jobs.security.tables import Project
from tests.support.tuning_requests import BASE, create, registered, upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of


def test_a_repeated_create_with_the_same_key_is_the_same_job(client: TestClient) -> None:
    body = {"model": BASE, "training_file": upload(client)}

    answers = [client.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert answers[0].json() == answers[1].json()
    assert len(client.get("/v1/fine_tuning/jobs").json()["data"]) == 1


def test_lists_are_paged_filtered_by_metadata_and_the_projects_own(client: TestClient, stranger: TestClient) -> None:
    ids = [create(client, metadata={"n": str(n % 2)})["id"] for n in range(3)]
    create(stranger)

    first = client.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    rest = client.get("/v1/fine_tuning/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    odd = client.get("/v1/fine_tuning/jobs", params={"metadata[n]": "1"}).json()

    assert [job["id"] for job in first["data"] + rest["data"]] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [job["id"] for job in odd["data"]] == [ids[1]]
    assert client.get("/v1/fine_tuning/jobs", params={"after": "ftjob-x"}).status_code == 400
    assert stranger.get(f"/v1/fine_tuning/jobs/{ids[0]}").status_code == 404


def test_cancel_is_immediate_and_repeatable_and_pause_is_then_refused(client: TestClient) -> None:
    path = f"/v1/fine_tuning/jobs/{create(client)['id']}"

    assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
    refused = client.post(f"{path}/pause")
    assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
    assert refused.json()["error"]["message"] == "Cannot pause a fine-tuning job with status 'cancelled'."


def test_a_paused_job_says_so_until_it_is_resumed(client: TestClient) -> None:
    job_id = create(client)["id"]
    path = f"/v1/fine_tuning/jobs/{job_id}"

    paused = [client.post(f"{path}/pause").json()["status"] for _ in range(2)]
    listed = client.get("/v1/fine_tuning/jobs").json()["data"][0]["status"]
    resumed = [client.post(f"{path}/resume").json()["status"] for _ in range(2)]

    assert (paused, listed, resumed) == (["paused"] * 2, "paused", ["validating_files"] * 2)
    events = client.get(f"{path}/events").json()["data"]
    assert [event["message"] for event in events] == [
        "The job goes on.",
        "The job is paused.",
        events[2]["message"],
        f"Created fine-tuning job: {job_id}",
    ]


def test_other_project_cannot_read_or_change_job(client: TestClient, stranger: TestClient) -> None:
    path = f"/v1/fine_tuning/jobs/{create(client)['id']}"

    answers = [stranger.post(f"{path}/{verb}").status_code for verb in ("cancel", "pause", "resume")]
    answers += [stranger.get(f"{path}/{name}").status_code for name in ("events", "checkpoints")]

    assert answers == [404] * 5
    assert client.get(path).json()["status"] == "validating_files"


def test_events_are_listed_newest_first_and_paged(app: FastAPI, client: TestClient) -> None:
    job_id = create(client)["id"]
    with app.state.services.db.write() as session:
        training_events.record_metrics(session, job_id, "Step 1/9: training loss=0.5", {"step": 1, "total_steps": 9})
    path = f"/v1/fine_tuning/jobs/{job_id}/events"

    first = client.get(path, params={"limit": 1}).json()
    rest = client.get(path, params={"after": first["last_id"]}).json()

    newest = first["data"][0]
    assert (newest["object"], newest["type"], newest["level"]) == ("fine_tuning.job.event", "metrics", "info")
    assert newest["data"] == {"step": 1, "total_steps": 9}
    assert newest["id"].startswith("ftevent-")
    assert (first["has_more"], rest["has_more"], len(rest["data"])) == (True, False, 2)
    assert rest["data"][0]["data"] is None
    by_type = {kind: client.get(path, params={"type": kind}).json()["data"] for kind in ("metrics", "message")}
    assert by_type == {"metrics": [newest], "message": rest["data"]}
    assert client.get(path, params={"after": "ftevent-x"}).json()["error"]["code"] == "invalid_cursor"


def test_checkpoints_have_names_and_metrics(app: FastAPI, client: TestClient) -> None:
    job = create(client, suffix="s")
    names = [registered(app, job, step) for step in (4, 8)]

    listed = client.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]

    assert [one["fine_tuned_model_checkpoint"] for one in listed] == names[::-1]
    assert listed[0]["fine_tuning_job_id"] == job["id"]
    assert listed[0]["step_number"] == 8
    metrics = listed[0]["metrics"]
    assert (metrics["step"], metrics["train_loss"], metrics["valid_loss"]) == (8, 1.5, None)


def test_permission_grants_project_access_to_checkpoint_until_deleted(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    name = registered(app, create(client), 4)
    path = f"/v1/fine_tuning/checkpoints/{name}/permissions"
    with app.state.services.db.read() as session:
        other = session.scalars(select(Project.id).where(Project.name == "another")).one()

    created = client.post(path, json={"project_ids": [other]}).json()
    listed = client.get(path, params={"order": "ascending"}).json()
    seen = stranger.get(f"/v1/models/{name}").json()
    passed_on = stranger.post(path, json={"project_ids": [other]})
    deleted = client.delete(f"{path}/{created['data'][0]['id']}").json()

    assert (created["object"], created["data"][0]["object"]) == ("list", "checkpoint.permission")
    assert listed["data"] == created["data"]
    assert seen["id"] == name
    assert passed_on.status_code == 404
    assert deleted == {"id": created["data"][0]["id"], "object": "checkpoint.permission", "deleted": True}
    assert stranger.get(f"/v1/models/{name}").status_code == 404
    assert client.delete(f"{path}/cp_x").status_code == 404


def test_permissions_do_not_say_which_projects_exist(
    app: FastAPI, client: TestClient, stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/fine_tuning/checkpoints/{registered(app, create(client), 4)}/permissions"
    with app.state.services.db.read() as session:
        real = session.scalars(select(Project.id).where(Project.name == "another")).one()
    unknown = new_id("proj_")

    answers = {project: client.post(path, json={"project_ids": [project]}) for project in (real, unknown)}
    malformed = client.post(path, json={"project_ids": [real, "another"]}).json()["error"]
    monkeypatch.setattr(models, "MAX_PERMISSIONS", 2)
    beyond = client.post(path, json={"project_ids": [real, new_id("proj_")]}).json()["error"]

    shown = [(answer.status_code, answer.json()["data"][0]["project_id"]) for answer in answers.values()]
    assert shown == [(200, real), (200, unknown)]
    assert (malformed["code"], malformed["param"]) == ("invalid_value", "project_ids[1]")
    assert (beyond["code"], beyond["param"]) == ("too_many_permissions", "project_ids")
    assert {row["project_id"] for row in client.get(path).json()["data"]} == {real, unknown}


def test_tuned_models_are_listed_retrieved_and_deleted_by_their_project(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    name = registered(app, create(client))

    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    theirs = {model["id"] for model in stranger.get("/v1/models").json()["data"]}

    assert listed[name]["owned_by"] == "default"
    assert name not in theirs
    assert stranger.delete(f"/v1/models/{name}").status_code == 404
    assert client.delete(f"/v1/models/{name}").json() == {"id": name, "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{name}").status_code == 404
    assert client.delete(f"/v1/models/{name}").status_code == 404


def test_a_file_that_a_job_or_a_model_names_is_not_deleted(app: FastAPI, client: TestClient) -> None:
    job = create(client)
    path = f"/v1/files/{job['training_file']}"

    live = client.delete(path)
    name = registered(app, job)
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    with app.state.services.db.write() as session:
        session.get_one(Job, job["id"]).state = "cancelled"
    held = client.delete(path)
    erased = client.delete(path, params={"erase": "true"})

    assert [answer.status_code for answer in (live, held, erased)] == [409, 409, 200]
    assert {answer.json()["error"]["code"] for answer in (live, held)} == {"file_in_use"}
    assert held.headers["x-should-retry"] == "false"
    assert name in held.json()["error"]["message"]
    with app.state.services.db.read() as session:
        model = models.find(session, name, session.get_one(Job, job["id"]).project_id)
        assert model is not None
        assert model.data_erased


def test_training_file_can_be_deleted_after_its_model(app: FastAPI, client: TestClient) -> None:
    job = create(client)
    name = registered(app, job)
    with app.state.services.db.write() as session:
        session.get_one(Job, job["id"]).state = "succeeded"
        assert session.get(FinetuneData, (job["id"], "training")) is not None
    client.delete(f"/v1/models/{name}")

    assert client.delete(f"/v1/files/{job['training_file']}").status_code == 200


def test_retry_repeats_request_of_ended_job(app: FastAPI, client: TestClient) -> None:
    job = create(client, seed=5, suffix="s", metadata={"a": "b"})
    with app.state.services.db.write() as session:
        session.get_one(Job, job["id"]).state = "failed"

    again = client.post(f"/v1/jobs/{job['id']}/retry").json()

    retried = client.get(f"/v1/fine_tuning/jobs/{again['id']}").json()
    assert again["retry_of"] == job["id"]
    assert (retried["seed"], retried["metadata"], retried["training_file"]) == (5, {"a": "b"}, job["training_file"])
    with app.state.services.db.read() as session:
        payload = FineTuning.model_validate(session.get_one(Job, again["id"]).payload)
        first = FineTuning.model_validate(session.get_one(Job, job["id"]).payload)
    assert payload.resumed_from == job["id"]
    assert payload.result != first.result
    refused = client.post(f"/v1/jobs/{job['id']}/retry", json={"overrides": {"model": "x"}})
    assert refused.json()["error"]["param"] == "overrides"


def test_a_project_has_so_many_live_jobs_and_no_more(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_finetune_jobs=2)
    client, stranger = (client_of(app, make_key(app, project)) for project in ("default", "another"))
    jobs = [create(client) for _ in range(2)]
    file_id = upload(client)

    answer = client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file_id})

    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"] == "The project has 2 jobs of kind 'finetuning' that have not ended, and may not have more."
    assert len(client.get("/v1/fine_tuning/jobs").json()["data"]) == 2
    create(stranger)
    with app.state.services.db.write() as session:
        session.get_one(Job, jobs[0]["id"]).state = "failed"
    create(client, training_file=file_id)
    assert client.post(f"/v1/jobs/{jobs[0]['id']}/retry").status_code == 429


@pytest.mark.verify
def test_number_of_events_is_bounded_for_repeatedly_paused_job(client: TestClient) -> None:
    job_id = create(client)["id"]
    path = f"/v1/fine_tuning/jobs/{job_id}"

    for _ in range(103):
        assert client.post(f"{path}/pause").json()["status"] == "paused"
        assert client.post(f"{path}/resume").json()["status"] == "validating_files"

    events = client.get(f"{path}/events", params={"limit": 100}).json()
    more = client.get(f"{path}/events", params={"limit": 100, "after": events["last_id"]}).json()
    further = client.get(f"{path}/events", params={"limit": 100, "after": more["last_id"]}).json()
    assert sum(len(page["data"]) for page in (events, more, further)) == 202
    assert not further["has_more"]


STATES = ("queued", "running", "finishing", "cancelling", "succeeded", "failed", "cancelled")


def in_state(app: FastAPI, client: TestClient, state: str) -> dict[str, Any]:
    job = create(client)
    with app.state.services.db.write() as session:
        session.get_one(Job, job["id"]).state = state
    return job


@pytest.mark.parametrize(
    ("verb", "allowed"),
    [
        (
            "cancel",
            {"queued": "cancelled", "running": "cancelled", "cancelling": "cancelled", "cancelled": "cancelled"},
        ),
        ("pause", {"queued": "paused", "running": "paused"}),
        ("resume", {"queued": "validating_files", "running": "queued"}),
    ],
)
def test_a_job_is_changed_in_the_states_that_allow_it_and_in_no_other(
    app: FastAPI, client: TestClient, verb: str, allowed: dict[str, str]
) -> None:
    for state in STATES:
        path = f"/v1/fine_tuning/jobs/{in_state(app, client, state)['id']}"
        before = client.get(path).json()

        answer = client.post(f"{path}/{verb}")

        if state in allowed:
            assert (answer.status_code, answer.json()["status"]) == (200, allowed[state]), state
            assert client.get(path).json()["status"] == allowed[state]
        else:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (409, "invalid_state"), state
            assert answer.headers["x-should-retry"] == "false"
            assert client.get(path).json() == before


def test_a_paused_job_is_cancelled_and_is_paused_no_more(client: TestClient) -> None:
    path = f"/v1/fine_tuning/jobs/{create(client)['id']}"
    client.post(f"{path}/pause")

    assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert client.post(f"{path}/resume").status_code == 409


@pytest.mark.parametrize("state", STATES)
def test_the_training_file_is_deleted_once_its_job_has_ended_without_a_model(
    app: FastAPI, client: TestClient, state: str
) -> None:
    path = f"/v1/files/{in_state(app, client, state)['training_file']}"
    ended = state in ("succeeded", "failed", "cancelled")

    deleted = client.delete(path)
    erased = client.delete(path, params={"erase": "true"})

    assert [deleted.status_code, erased.status_code] == ([200, 404] if ended else [409, 409])
    if not ended:
        assert (deleted.json()["error"]["code"], deleted.headers["x-should-retry"]) == ("file_in_use", "false")
        assert client.get(path).status_code == 200


def test_projects_can_use_same_suffix_independently(make_app: Callable[..., FastAPI]) -> None:
    app = make_app()
    clients = [client_of(app, make_key(app, project)) for project in ("Team A", "team-a")]  # of one slug, too
    jobs = [create(client, suffix="support") for client in clients]

    names = [registered(app, job) for job in jobs]

    assert len(set(names)) == 2
    assert all(name.startswith(f"ft:{BASE}:team-a:support:") for name in names)
    for n, client in enumerate(clients):
        assert client.get(f"/v1/models/{names[n]}").status_code == 200
        assert client.get(f"/v1/models/{names[1 - n]}").status_code == 404
        assert {names[1 - n]}.isdisjoint(model["id"] for model in client.get("/v1/models").json()["data"])
        assert client.delete(f"/v1/models/{names[1 - n]}").status_code == 404


def trained(app: FastAPI, job: dict[str, Any], steps: int) -> None:
    """Record the plan and the steps of a job, of which each fifth was evaluated."""
    with app.state.services.db.write() as session:
        session.add(
            FinetunePlan(
                job_id=job["id"],
                n_epochs=2,
                batch_size=4,
                learning_rate_multiplier=1.0,
                rows=40,
                validation_rows=5,
                tokens=900,
                steps=1000,
                seconds=12.7,
                device_seconds=9.2,
            )
        )
        for step in range(1, steps + 1):
            session.add(
                FinetuneStep(
                    job_id=job["id"],
                    step=step,
                    created_at=now(),
                    epoch=1.0,
                    train_loss=float(step),
                    learning_rate=1e-4,
                    valid_loss=step / 2 if step % 5 == 0 else None,
                )
            )


def test_progress_has_the_plan_the_cost_and_the_curve(client: TestClient, app: FastAPI) -> None:
    job = create(client)
    path = f"/v1/fine_tuning/jobs/{job['id']}/progress"
    before = client.get(path).json()
    trained(app, job, 10)

    progress = client.get(path).json()

    assert (before["steps"], before["trained_steps"], before["seconds"], before["data"]) == (None, 0, 0, [])
    expected = {"steps": 1000, "trained_steps": 10, "examples": 40, "validation_examples": 5, "tokens": 900}
    assert {name: progress[name] for name in expected} == expected
    assert (progress["seconds"], progress["device_seconds"]) == (12, 9)
    assert [(point["step"], point["train_loss"]) for point in progress["data"]] == [(n, n) for n in range(1, 11)]
    assert [point["step"] for point in progress["data"] if point["valid_loss"] is not None] == [5, 10]


def test_progress_curve_has_at_most_requested_number_of_points(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    job = create(client)
    trained(either, job, 10)

    points = client.get(f"/v1/fine_tuning/jobs/{job['id']}/progress", params={"points": 3}).json()["data"]

    assert [(point["step"], point["train_loss"], point["valid_loss"]) for point in points] == [
        (4, 2.5, None),
        (8, 6.5, 2.5),
        (10, 9.5, 5.0),
    ]


def test_progress_of_another_project_and_a_wrong_number_of_points(client: TestClient, app: FastAPI) -> None:
    path = f"/v1/fine_tuning/jobs/{create(client)['id']}/progress"

    assert client_of(app, make_key(app, "other")).get(path).status_code == 404
    assert [client.get(path, params={"points": points}).status_code for points in (0, 1001, "x")] == [400] * 3
