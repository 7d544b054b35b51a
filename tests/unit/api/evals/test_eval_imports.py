"""Evals and runs from elsewhere over HTTP: taken over once, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from jobs.evals.tables import Eval, EvalRun
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

CHECK = {"type": "string_check", "name": "same", "input": "{{ item.a }}", "operation": "eq", "reference": "x"}
CONFIG = {"type": "custom", "item_schema": {"type": "object"}}
EVAL = {"imported_from": "eval_far", "name": "far", "data_source_config": CONFIG, "testing_criteria": [CHECK]}


def stored(app: FastAPI) -> tuple[int, ...]:
    with app.state.services.db.read() as session:
        return tuple(session.scalar(select(func.count()).select_from(table)) or 0 for table in (Eval, EvalRun, Job))


def import_eval(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/evals/imports", json=EVAL | changes)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def file_of(client: TestClient, purpose: str = "evals") -> str:
    content = b'{"custom_id":"a"}\n'
    return str(client.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": purpose}).json()["id"])


def run_body(file_id: str, **changes: Any) -> dict[str, Any]:
    return {"imported_from": "evalrun_far", "file_id": file_id, "data_source": {"type": "jsonl"}, **changes}


def test_eval_is_imported_once_in_each_project(client: TestClient, app: FastAPI) -> None:
    first, second = import_eval(client, metadata={"a": "b"}), import_eval(client, name="renamed")
    other = import_eval(client_of(app, make_key(app, "other")))

    assert (first["imported_from"], first["name"], first["metadata"]) == ("eval_far", "far", {"a": "b"})
    assert second == first
    assert other["id"] != first["id"]
    assert stored(app) == (2, 0, 0)
    assert client.get(f"/v1/evals/{first['id']}").json() == first


def test_eval_that_was_made_here_has_no_origin(client: TestClient) -> None:
    made = client.post("/v1/evals", json={name: EVAL[name] for name in ("data_source_config", "testing_criteria")})

    assert "imported_from" not in made.json()


def test_criteria_of_openai_have_ids_and_keep_their_names_apart(client: TestClient) -> None:
    """OpenAI's dashboard names each criterion after its type, and its results by the `id` of the criterion."""
    names, ids = ("String check", "String check", "tone"), ("String check-a2486074", "String check-c4fdf789", "tone-1")
    criteria = [{**CHECK, "name": name, "id": id_} for name, id_ in zip(names, ids, strict=True)]

    made = import_eval(client, testing_criteria=criteria)

    assert [criterion["name"] for criterion in made["testing_criteria"]] == [*ids[:2], "tone"]
    assert all("id" not in criterion for criterion in made["testing_criteria"])


def test_repeated_run_import_creates_single_run(client: TestClient, app: FastAPI) -> None:
    eval_id, file_id = import_eval(client)["id"], file_of(client)
    source = {"type": "completions", "model": "gpt-4o", "source": {"type": "file_id", "id": "file-far"}}
    body = run_body(file_id, model="gpt-4o", name="r", data_source=source)

    first, second = (client.post(f"/v1/evals/{eval_id}/imports", json=body) for _ in range(2))

    assert (first.status_code, first.json()["status"], first.json()["model"]) == (201, "queued", "gpt-4o")
    assert (first.json()["imported_from"], first.json()["data_source"]) == ("evalrun_far", source)
    assert second.json() == first.json()
    assert stored(app) == (1, 1, 1)


def test_imports_count_among_the_live_runs_of_a_project(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_eval_runs=2)
    client = client_of(app, make_key(app))
    eval_id, file_id = import_eval(client)["id"], file_of(client)

    def imported(run_id: str) -> Any:
        return client.post(f"/v1/evals/{eval_id}/imports", json=run_body(file_id, imported_from=run_id))

    first, _, third = (imported(f"evalrun_{n}") for n in range(3))

    assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert stored(app) == (1, 2, 2)
    assert imported("evalrun_0").json() == first.json()  # it is there already
    with app.state.services.db.write() as session:
        session.get_one(Job, first.json()["id"]).state = JobState.SUCCEEDED
    assert imported("evalrun_2").status_code == 201


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_imported_run_is_not_retried(client: TestClient, app: FastAPI, state: JobState) -> None:
    eval_id = import_eval(client)["id"]
    run_id = client.post(f"/v1/evals/{eval_id}/imports", json=run_body(file_of(client))).json()["id"]
    with app.state.services.db.write() as session:
        job = session.get_one(Job, run_id)
        job.state, job.total, job.failed = state, 2, 2

    answer = client.post(f"/v1/jobs/{run_id}/retry", json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "nothing_to_retry")
    assert f"Run '{run_id}' was imported" in answer.json()["error"]["message"]
    assert stored(app) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"file_id": "file-none"}, "file_id"),
        ({"data_source": {}}, "data_source"),
        ({"data_source": {"type": "jsonl", "text": "x" * 70_000}}, "data_source"),
        ({"imported_from": ""}, "imported_from"),
        ({"imported_from": "x" * 256}, "imported_from"),
        ({"model": ""}, "model"),
        ({"items": []}, "items"),
    ],
)
def test_bad_run_changes_nothing(client: TestClient, app: FastAPI, changes: dict[str, Any], param: str) -> None:
    eval_id, file_id = import_eval(client)["id"], file_of(client)
    before = stored(app)

    answer = client.post(f"/v1/evals/{eval_id}/imports", json=run_body(file_id) | changes)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert stored(app) == before


def test_file_of_another_purpose_or_project_is_refused(client: TestClient, app: FastAPI) -> None:
    eval_id = import_eval(client)["id"]

    answers = [
        client.post(f"/v1/evals/{eval_id}/imports", json=run_body(file_id))
        for file_id in (file_of(client, "user_data"), file_of(client_of(app, make_key(app, "other"))))
    ]

    assert [answer.json()["error"]["code"] for answer in answers] == ["invalid_file_purpose", "file_not_found"]


def test_eval_of_another_project_is_not_there(client: TestClient, app: FastAPI) -> None:
    other = client_of(app, make_key(app, "other"))

    answer = other.post(f"/v1/evals/{import_eval(client)['id']}/imports", json=run_body(file_of(other)))

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "eval_id")


@pytest.mark.parametrize(
    "changes",
    [
        {"testing_criteria": [{"type": "magic", "name": "x"}]},
        {"testing_criteria": []},
        {"testing_criteria": [5]},
        {"testing_criteria": [{**CHECK, "id": 5}] * 2},
        {"data_source_config": {}},
    ],
)
def test_bad_eval_changes_nothing(client: TestClient, app: FastAPI, changes: dict[str, Any]) -> None:
    answer = client.post("/v1/evals/imports", json=EVAL | changes)

    assert answer.status_code == 400
    assert stored(app) == (0, 0, 0)


def test_original_ids_reach_the_imported_eval_and_its_runs(client: TestClient, app: FastAPI) -> None:
    eval_id = import_eval(client)["id"]
    file_id = file_of(client)
    run = client.post("/v1/evals/eval_far/imports", json=run_body(file_id)).json()
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": "x"}}]}}

    fresh = client.post("/v1/evals/eval_far/runs", json={"data_source": source})

    assert (fresh.status_code, fresh.json()["eval_id"], run["eval_id"]) == (201, eval_id, eval_id)
    assert client.get("/v1/evals/eval_far").json()["id"] == eval_id
    listed = client.get("/v1/evals/eval_far/runs").json()["data"]
    assert {row["id"] for row in listed} == {run["id"], fresh.json()["id"]}
    far = "/v1/evals/eval_far/runs/evalrun_far"
    assert client.get(far).json()["id"] == run["id"]
    assert client.get(f"{far}/output_items").json()["data"] == []
    assert client.post(f"{far}/cancel").json()["status"] == "canceled"
    compared = client.get(f"{far}/comparison", params={"baseline": "evalrun_far"})
    assert (compared.status_code, compared.json()["error"]["code"]) == (409, "run_not_ended")
    assert client.delete(far).json()["run_id"] == run["id"]
    assert client.post("/v1/evals/eval_far", json={"name": "near"}).json()["name"] == "near"
    assert client.delete("/v1/evals/eval_far").json()["eval_id"] == eval_id
    assert client.get("/v1/evals/eval_far").status_code == 404


def test_original_id_of_another_project_is_not_found(client: TestClient, app: FastAPI) -> None:
    import_eval(client)

    answer = client_of(app, make_key(app, "other")).get("/v1/evals/eval_far")

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "eval_id")


def test_own_id_wins_over_the_original_id_of_another_eval(client: TestClient) -> None:
    own = import_eval(client)["id"]
    import_eval(client, imported_from=own, name="copy")

    assert client.get(f"/v1/evals/{own}").json()["name"] == "far"
