"""Evals and their runs over HTTP: created, listed, changed, removed, and what is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from jobs.clock import now
from jobs.evals import runs
from jobs.evals.tables import Eval, EvalRun
from jobs.inference import answer_queries
from jobs.inference.tables import StoredResponse
from jobs.ledger import dependencies
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.requests.endpoints import SEARCH
from tests.support.web import keep_completion_in, make_key
from tests.support.worker_rows import worker_row
from tests.unit.api.conftest import client_of

MODEL = "smollm2-135m-instruct"
CHECK = {"type": "string_check", "name": "same", "input": "{{ item.a }}", "operation": "eq", "reference": "x"}
JUDGE = {"type": "score_model", "name": "good", "model": MODEL, "input": [{"role": "user", "content": "{{ item.a }}"}]}
CONFIG = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{ item.a }}"}]}
CONTENT = {"type": "file_content", "content": [{"item": {"a": "x"}}]}
COMPLETIONS = {"type": "completions", "model": MODEL, "source": CONTENT, "input_messages": TEMPLATE}
JSONL = {"type": "jsonl", "source": CONTENT}


def create(client: TestClient, *criteria: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"name": "e", "data_source_config": CONFIG, "testing_criteria": list(criteria or (CHECK,)), **fields}
    answer = client.post("/v1/evals", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def run(client: TestClient, eval_id: str, **source: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/evals/{eval_id}/runs", json={"data_source": JSONL | source})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def stored(app: FastAPI) -> tuple[int, ...]:
    with app.state.services.db.read() as session:
        return tuple(session.scalar(select(func.count()).select_from(table)) or 0 for table in (Eval, EvalRun, Job))


def test_eval_is_shown_as_it_was_made(client: TestClient) -> None:
    made = create(client, CHECK, JUDGE, metadata={"team": "a"})

    assert made["object"] == "eval"
    assert made["id"].startswith("eval_")
    assert made["data_source_config"]["type"] == "custom"
    assert made["data_source_config"]["schema"]["required"] == ["item", "sample"]
    assert made["data_source_config"]["schema"]["properties"]["item"] == {"type": "object"}
    assert [criterion["name"] for criterion in made["testing_criteria"]] == ["same", "good"]
    assert client.get(f"/v1/evals/{made['id']}").json() == made


def test_evals_are_listed_by_the_time_of_their_change(client: TestClient) -> None:
    first, second, third = (create(client, name=name)["id"] for name in "abc")
    client.post(f"/v1/evals/{first}", json={"name": "z"})

    def ids(**query: Any) -> list[str]:
        return [row["id"] for row in client.get("/v1/evals", params=query).json()["data"]]

    assert ids() == [first, second, third]
    assert ids(order_by="updated_at") == [second, third, first]
    assert ids(order_by="updated_at", order="desc", after=first) == [third, second]
    assert ids(limit=1, after=first) == [second]


def test_name_and_metadata_are_changed(client: TestClient) -> None:
    made = create(client, metadata={"a": "b"})

    renamed = client.post(f"/v1/evals/{made['id']}", json={"name": "new"}).json()
    emptied = client.post(f"/v1/evals/{made['id']}", json={"metadata": None}).json()

    assert (renamed["name"], renamed["metadata"]) == ("new", {"a": "b"})
    assert (emptied["name"], emptied["metadata"]) == ("new", None)


def test_create_with_a_key_is_repeated(client: TestClient, app: FastAPI) -> None:
    body = {"data_source_config": CONFIG, "testing_criteria": [CHECK]}
    first, second = (client.post("/v1/evals", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    path, source = f"/v1/evals/{first.json()['id']}/runs", {"data_source": JSONL}
    third, fourth = (client.post(path, json=source, headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert (first.status_code, second.status_code, third.status_code, fourth.status_code) == (201,) * 4
    assert (second.json(), fourth.json()) == (first.json(), third.json())
    assert second.headers["Idempotency-Replayed"] == "true"
    assert stored(app) == (1, 1, 1)


def test_run_waits_for_the_jobs_that_ask_models(client: TestClient, app: FastAPI) -> None:
    made = create(client, CHECK, JUDGE, {**JUDGE, "name": "other"})

    run_id = run(client, made["id"], **COMPLETIONS)["id"]

    with app.state.services.db.read() as session:
        sampled, *judges = runs.steps_of(session, [run_id])[run_id]
        edges = dependencies.predecessors(session, [sampled, *judges, session.get_one(Job, run_id)])
        assert edges[sampled.id] == []
        assert [edges[judge.id] for judge in judges] == [[sampled.id], [sampled.id]]
        assert sorted(edges[run_id]) == sorted([sampled.id, *(judge.id for judge in judges)])
        assert session.get_one(Job, run_id).waiting_for == "job"
    assert client.get("/v1/batches").json()["data"] == []
    assert client.get(f"/v1/evals/{made['id']}/runs/{run_id}").json()["status"] == "queued"


@pytest.mark.parametrize("kind", ["completions", "responses"])
def test_limit_of_tokens_has_either_of_its_names(client: TestClient, app: FastAPI, kind: str) -> None:
    """The notebooks of OpenAI's cookbook and the examples of its reference have the plural in runs."""
    made = create(client)
    limits: list[dict[str, Any]] = [
        {"max_completions_tokens": 50},
        {"max_completion_tokens": 50},
        {"max_completion_tokens": 50, "max_completions_tokens": 50},
    ]

    for limit in limits:
        shown = run(client, made["id"], **COMPLETIONS | {"type": kind, "sampling_params": limit})
        assert shown["data_source"]["sampling_params"] == limit
        with app.state.services.db.read() as session:
            sampled = runs.Evaluation.model_validate(session.get_one(Job, shown["id"]).payload).sampled
        assert sampled is not None
        assert sampled.params == {"max_completion_tokens": 50}


def test_run_shows_items_only_below_size_limit(client: TestClient) -> None:
    made = create(client)
    few = run(client, made["id"])
    many = run(client, made["id"], source={**CONTENT, "content": [{"item": {"a": "x" * 20_000}}]})

    assert few["data_source"]["source"]["content"] == CONTENT["content"]
    assert many["data_source"]["source"]["content"] == []
    assert few["report_url"].endswith(f"/console/evals/{made['id']}/runs/{few['id']}")


def test_runs_are_listed_by_status(client: TestClient) -> None:
    made = create(client)
    first, second = run(client, made["id"])["id"], run(client, made["id"])["id"]
    client.post(f"/v1/evals/{made['id']}/runs/{first}/cancel")

    def ids(**query: Any) -> list[str]:
        return [row["id"] for row in client.get(f"/v1/evals/{made['id']}/runs", params=query).json()["data"]]

    assert (ids(), ids(order="desc")) == ([first, second], [second, first])
    assert (ids(status="canceled"), ids(status="queued"), ids(status="completed")) == ([first], [second], [])


def test_removed_eval_takes_its_runs_along(client: TestClient, app: FastAPI) -> None:
    made = create(client)
    for _ in range(3):
        run(client, made["id"])

    deleted = client.delete(f"/v1/evals/{made['id']}").json()

    assert deleted == {"object": "eval.deleted", "deleted": True, "eval_id": made["id"]}
    assert stored(app)[:2] == (0, 0)
    with app.state.services.db.read() as session:
        assert {job.state for job in session.scalars(select(Job))} == {"cancelling"}
    assert client.get(f"/v1/evals/{made['id']}").status_code == 404


def test_other_projects_see_nothing(client: TestClient, stranger: TestClient) -> None:
    made = create(client)
    run_id = run(client, made["id"])["id"]

    for path in ("", f"/runs/{run_id}", f"/runs/{run_id}/output_items", f"/runs/{run_id}/output_items/x", "/runs"):
        assert stranger.get(f"/v1/evals/{made['id']}{path}").status_code == 404
    assert stranger.delete(f"/v1/evals/{made['id']}").status_code == 404
    assert stranger.post(f"/v1/evals/{made['id']}/runs", json={"data_source": JSONL}).status_code == 404
    assert stranger.get("/v1/evals").json()["data"] == []


def _of_type(kind: str) -> dict[str, Any]:
    return {"data_source_config": CONFIG, "testing_criteria": [{**CHECK, "type": kind}]}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "data_source_config"),
        ({"data_source_config": CONFIG}, "missing_required_parameter", "testing_criteria"),
        ({"data_source_config": CONFIG, "testing_criteria": []}, None, "testing_criteria"),
        (
            {"data_source_config": {"type": "x"}, "testing_criteria": [CHECK]},
            "invalid_value",
            "data_source_config.type",
        ),
        (_of_type("nothing"), "invalid_value", "testing_criteria[0].type"),
        (
            {"data_source_config": {"type": "custom", "item_schema": {"type": 5}}, "testing_criteria": [CHECK]},
            "invalid_schema",
            "data_source_config.item_schema",
        ),
        (
            {
                "data_source_config": {"type": "custom", "item_schema": {"title": "x" * 70_000}},
                "testing_criteria": [CHECK],
            },
            "schema_too_large",
            "data_source_config.item_schema",
        ),
        (
            {"data_source_config": CONFIG, "testing_criteria": [{**CHECK, "input": "{{ nothing.a }}"}]},
            "invalid_value",
            "testing_criteria[0].input",
        ),
    ],
)
def test_bad_eval_is_refused_and_changes_nothing(
    client: TestClient, app: FastAPI, body: dict[str, Any], code: str | None, param: str
) -> None:
    answer = client.post("/v1/evals", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert code in (None, error["code"])
    assert stored(app) == (0, 0, 0)


CODE = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1"}
FIELDS = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.fixture
def with_sandbox(app: FastAPI) -> None:
    """Let a worker say that it has the sandbox of python graders."""
    with app.state.services.db.write() as session:
        session.add(worker_row("w", Queue.EVALUATE, sandbox_lacks=[]))


def test_an_eval_is_accepted_while_the_workers_that_grade_start(client: TestClient) -> None:
    assert run(client, create(client, CODE)["id"])["status"] == "queued"


@pytest.mark.usefixtures("with_sandbox")
@pytest.mark.parametrize(
    ("criterion", "param"),
    [
        ({**CODE, "source": "def grade(:"}, "testing_criteria[1].source"),
        ({**CODE, "source": "def score(sample, item):\n    return 1"}, "testing_criteria[1].source"),
        (
            {"type": "multi", "name": "m", "graders": {"x": {**CODE, "source": "("}}, "calculate_output": "x"},
            "testing_criteria[1].graders.x.source",
        ),
    ],
)
def test_code_that_cannot_grade_is_refused_with_its_eval(
    client: TestClient, app: FastAPI, criterion: dict[str, Any], param: str
) -> None:
    answer = client.post("/v1/evals", json={"data_source_config": CONFIG, "testing_criteria": [CODE, criterion]})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_source", param)
    assert stored(app) == (0, 0, 0)
    create(client, CODE)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (FIELDS, "item.nope"),
        (FIELDS, "item.nope.a"),
        (FIELDS, "item[0]"),
        ({**FIELDS, "additionalProperties": False}, "item.nope"),
    ],
)
def test_variable_that_no_item_has_is_refused(
    client: TestClient, app: FastAPI, schema: dict[str, Any], path: str
) -> None:
    config = CONFIG | {"item_schema": schema}
    judge = {**JUDGE, "input": [{"role": "user", "content": [{"type": "input_text", "text": f"{{{{ {path} }}}}"}]}]}
    multi = {"type": "multi", "name": "m", "graders": {"x": judge}, "calculate_output": "x"}

    for criterion in ({**CHECK, "reference": f"{{{{ {path} }}}}"}, judge, multi):
        answer = client.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [CHECK, criterion]})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_variable", "testing_criteria[1]")
    assert stored(app) == (0, 0, 0)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {**FIELDS, "additionalProperties": True},
        {**FIELDS, "additionalProperties": {"type": "string"}},
        {**FIELDS, "additionalProperties": {}},
        {**FIELDS, "patternProperties": {"^n": {}}},
        {**FIELDS, "allOf": [{"properties": {"nope": {}}}]},
        {"$ref": "#/$defs/row", "$defs": {"row": FIELDS}},
    ],
)
def test_variable_that_an_item_may_have_is_taken(client: TestClient, schema: dict[str, Any]) -> None:
    config = CONFIG | {"item_schema": schema}

    create(client, {**CHECK, "input": "{{ item }}", "reference": "{{ item.nope }}"}, data_source_config=config)


def test_sample_of_an_eval_that_expects_none_is_refused(client: TestClient, app: FastAPI) -> None:
    """`include_sample_schema` is false where it is left out, and says whether there are samples."""
    config = {"type": "custom", "item_schema": {"type": "object"}}
    check = {**CHECK, "input": "{{ sample.output_text }}"}

    answer = client.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [check]})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_variable", "testing_criteria[0]")
    assert "include_sample_schema" in error["message"]
    assert stored(app) == (0, 0, 0)
    create(client, CHECK, data_source_config=config)
    create(client, check, data_source_config={"type": "logs"})


@pytest.mark.parametrize(
    ("criterion", "source", "param"),
    [
        ({**JUDGE, "model": "nobody"}, JSONL, "testing_criteria[1].model"),
        (CHECK, {**COMPLETIONS, "model": "nobody"}, "data_source.model"),
        ({**JUDGE, "model": "all-minilm-l6-v2"}, JSONL, "testing_criteria[1].model"),
    ],
)
def test_run_that_asks_a_model_which_is_not_served_is_refused(
    client: TestClient, app: FastAPI, criterion: dict[str, Any], source: dict[str, Any], param: str
) -> None:
    made = create(client, CHECK, criterion)

    answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})

    error = answer.json()["error"]
    code = "model_not_supported" if criterion.get("model") == "all-minilm-l6-v2" else "model_not_found"
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert stored(app) == (1, 0, 0)
    assert app.state.services.storage.list("jobs") == []


def test_tool_that_no_response_may_have_is_refused(client: TestClient, app: FastAPI) -> None:
    made = create(client)
    function = {"type": "function", "name": "f", "parameters": {}}

    for tool in ({"type": "web_search_preview"}, {"type": "mcp", "server_label": "gitmcp"}, {}):
        source = COMPLETIONS | {"type": "responses", "sampling_params": {"tools": [function, tool]}}
        answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "unsupported_tool")
        assert error["param"] == "data_source.sampling_params.tools[1]"
    assert stored(app) == (1, 0, 0)
    run(client, made["id"], **COMPLETIONS | {"type": "responses", "sampling_params": {"tools": [function]}})


@pytest.mark.parametrize(
    ("source", "code", "param"),
    [
        ({"type": "nothing"}, "invalid_value", "data_source.type"),
        ({"type": "jsonl", "source": {"type": "stored_completions"}}, "invalid_value", "data_source.source.type"),
        (
            {"type": "jsonl", "source": {"type": "file_content", "content": []}},
            None,
            "data_source.source.content",
        ),
        (
            {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": 5}]}},
            "invalid_type",
            "data_source.source.content[0].item",
        ),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file-x"}}, "file_not_found", "data_source.source.id"),
        ({**COMPLETIONS, "model": None}, None, "data_source"),
        (
            {**COMPLETIONS, "source": {"type": "stored_completions", "users": ["u"]}},
            "unknown_parameter",
            "data_source.source.users",
        ),
        ({"type": "responses", "source": {"type": "responses", "users": ["u"]}}, None, "data_source.source.users"),
        (
            {"type": "completions", "source": {"type": "stored_completions", "limit": 10_001}},
            None,
            "data_source.source.limit",
        ),
        ({**COMPLETIONS, "sampling_params": {"temperature": 3}}, None, "data_source.sampling_params.temperature"),
        ({**COMPLETIONS, "sampling_params": {"n": 17}}, None, "data_source.sampling_params.n"),
        (
            {**COMPLETIONS, "sampling_params": {"max_completion_tokens": 9, "max_completions_tokens": 8}},
            "invalid_value",
            "data_source.sampling_params",
        ),
        (
            {**COMPLETIONS, "sampling_params": {"max_completions_tokens": 0}},
            None,
            "data_source.sampling_params.max_completions_tokens",
        ),
        (
            {**COMPLETIONS, "input_messages": {"type": "item_reference", "item_reference": "sample.x"}},
            "invalid_value",
            "data_source.input_messages.item_reference",
        ),
    ],
)
def test_bad_run_is_refused_and_changes_nothing(
    client: TestClient, app: FastAPI, source: dict[str, Any], code: str | None, param: str
) -> None:
    made = create(client)

    answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert code in (None, error["code"])
    assert stored(app) == (1, 0, 0)
    assert app.state.services.storage.list("jobs") == []


def test_run_over_the_store_of_another_project_is_not_found(client: TestClient, app: FastAPI) -> None:
    other = client_of(app, make_key(app, "another"))
    store_id = other.post("/v1/vector_stores", json={}).json()["id"]
    made = create(client)

    for unknown in (store_id, "vs_x"):
        source = {"type": "retrieval", "source": CONTENT, "vector_store_id": unknown}
        answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "vector_store_id")
    assert stored(app) == (1, 0, 0)
    assert app.state.services.storage.list("jobs") == []


def test_run_over_a_store_asks_the_model_of_the_store(client: TestClient, app: FastAPI) -> None:
    store = client.post("/v1/vector_stores", json={}).json()
    source = {
        "type": "retrieval",
        "vector_store_id": store["id"],
        "max_num_results": 7,
        "ranking_options": {"score_threshold": 0.5, "deduplicate": 0.9},
    }

    made = run(client, create(client)["id"], **source)

    assert made["model"] == store["embedding_model"]
    with app.state.services.db.read() as session:
        (step,) = runs.steps_of(session, [made["id"]])[made["id"]]
        sampled = runs.Evaluation.model_validate(session.get_one(Job, made["id"]).payload).sampled
    assert (step.endpoint, step.model) == (SEARCH, store["embedding_model"])
    assert sampled is not None
    assert sampled.retrieval == runs.Retrieval(
        vector_store_id=store["id"], options={"limit": 7, "threshold": 0.5, "deduplicate": 0.9}
    )
    assert sampled.text == "{{ item.query }}"


def test_perplexity_run_needs_supporting_engine(client: TestClient, app: FastAPI) -> None:
    made = create(client)
    source = {"type": "perplexity", "source": CONTENT, "model": "all-minilm-l6-v2"}

    refused = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})
    run(client, made["id"], **source | {"model": "smollm2-135m-instruct"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_supported")
    assert stored(app)[1] == 1


def test_run_with_oversized_template_is_refused(client: TestClient, app: FastAPI) -> None:
    made = create(client)
    template = {"type": "template", "template": [{"role": "user", "content": "x" * 200_000}] * 6}

    body = {"data_source": COMPLETIONS | {"input_messages": template}}
    answer = client.post(f"/v1/evals/{made['id']}/runs", json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "run_too_large")
    assert stored(app) == (1, 0, 0)


def test_source_that_matches_nothing_is_refused(client: TestClient, app: FastAPI) -> None:
    made = create(client, data_source_config={"type": "logs", "metadata": {"a": "b"}})
    source = {"type": "completions", "source": {"type": "stored_completions"}}

    answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_items")
    assert stored(app) == (1, 0, 0)


def test_response_is_stored_with_metadata_and_selectable_after_completion(client: TestClient, app: FastAPI) -> None:
    made = create(client, data_source_config={"type": "logs", "metadata": {"team": "a"}})
    body = {"model": MODEL, "input": "q", "background": True, "metadata": {"team": "a"}}
    response_id = client.post("/v1/responses", json=body).json()["id"]
    body = {"data_source": {"type": "responses", "source": {"type": "responses", "model": MODEL}}}

    too_early = client.post(f"/v1/evals/{made['id']}/runs", json=body)
    with app.state.services.db.write() as session:
        row, job = session.get_one(StoredResponse, response_id), session.get_one(Job, response_id)
        job.state = JobState.SUCCEEDED
    created = client.post(f"/v1/evals/{made['id']}/runs", json=body)

    assert (row.requested_model, row.model, row.metadata_) == (MODEL, MODEL, {"team": "a"})
    assert (too_early.status_code, too_early.json()["error"]["code"]) == (400, "no_items")
    assert (created.status_code, created.json()["data_source"]) == (201, body["data_source"])
    with app.state.services.storage.reader(runs.items_path(created.json()["id"])) as lines:
        assert json.loads(lines.read()) == {"id": response_id, "metadata": {"team": "a"}}


def test_newest_stored_answers_are_looked_at_up_to_a_bound(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_queries, "LOOKED_AT", 2)
    services = app.state.services
    old = {"metadata_": {"team": "a"}, "created_at": now() - 9}
    keep_completion_in(services.db, services.storage, "default", said="old", **old)
    newest = [keep_completion_in(services.db, services.storage, "default") for _ in range(2)]
    made = create(client, data_source_config={"type": "logs"})
    source: dict[str, Any] = {"type": "completions", "source": {"type": "stored_completions"}}

    every = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})
    source["source"]["metadata"] = {"team": "a"}
    beyond = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})

    assert beyond.json()["error"]["code"] == "no_items"
    with services.storage.reader(runs.items_path(every.json()["id"])) as lines:
        assert sorted(json.loads(line)["id"] for line in lines) == sorted(newest)


@pytest.mark.parametrize(
    ("selection", "chosen"), [({"min_score": 0.5}, "b"), ({"max_score": 0.2}, "a"), ({"min_score": -1}, "ab")]
)
def test_stored_answers_are_selected_by_the_mean_score_of_their_feedback(
    client: TestClient, app: FastAPI, selection: dict[str, float], chosen: str
) -> None:
    services = app.state.services
    answers = {name: keep_completion_in(services.db, services.storage, "default") for name in "abc"}
    for name, user, score in (("a", "ann", 1), ("a", "bob", -1), ("b", "ann", 0.6)):
        target = {"type": "chat.completion", "completion_id": answers[name]}
        assert client.post("/v1/feedback", json={"target": target, "user": user, "score": score}).status_code == 200
    made = create(client, data_source_config={"type": "logs"})
    source = {"type": "completions", "source": {"type": "stored_completions", **selection}}

    run = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source}).json()

    with services.storage.reader(runs.items_path(run["id"])) as lines:
        assert {json.loads(line)["id"] for line in lines} == {answers[name] for name in chosen}


def test_project_has_so_many_live_runs_and_no_more(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_eval_runs=2)
    client, stranger = (client_of(app, make_key(app, project)) for project in ("default", "another"))
    made = create(client)
    first, _ = (run(client, made["id"]) for _ in range(2))

    answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": JSONL})

    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert stored(app) == (1, 2, 2)
    assert len(app.state.services.storage.list("jobs")) == 2
    run(stranger, create(stranger)["id"])
    client.post(f"/v1/evals/{made['id']}/runs/{first['id']}/cancel")
    with app.state.services.db.write() as session:
        session.get_one(Job, first["id"]).state = JobState.CANCELLED
    run(client, made["id"])


def test_file_of_another_purpose_is_refused(client: TestClient) -> None:
    made = create(client)
    upload = client.post("/v1/files", files={"file": ("t.jsonl", b'{"item":{}}\n')}, data={"purpose": "batch"}).json()
    source = {"type": "jsonl", "source": {"type": "file_id", "id": upload["id"]}}

    answer = client.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_file_purpose")


def test_unknown_cursors_and_ids(client: TestClient, app: FastAPI) -> None:
    made = create(client)
    path = f"/v1/evals/{made['id']}"
    run_id = run(client, made["id"])["id"]
    items = f"{path}/runs/{run_id}/output_items"

    assert client.get("/v1/evals", params={"after": "eval_x"}).status_code == 400
    assert client.get(f"{path}/runs", params={"after": "evalrun_x"}).status_code == 400
    assert client.get(items, params={"after": "outputitem_x"}).json()["error"]["code"] == "invalid_cursor"
    assert client.get(items, params={"status": "nothing"}).status_code == 400
    assert client.get(items).json()["data"] == []
    assert client.get(f"{items}/{runs.item_id(run_id, 0)}").status_code == 404
    assert client.get(f"{path}/runs/evalrun_x").status_code == 404
    assert client.post(f"{path}/runs/evalrun_x/cancel").status_code == 404
    assert client_of(app, "no-key").get(path).status_code == 401


def test_numbers_of_output_items() -> None:
    run_id = f"{runs.PREFIX}abc"

    assert [runs.item_number(run_id, runs.item_id(run_id, number)) for number in (0, 9, 1 << 24)] == [0, 9, 1 << 24]
    for other in ("", "outputitem_", "outputitem_abc", f"outputitem_{'x' * 9}", runs.item_id("evalrun_abd", 1)):
        assert runs.item_number(run_id, other) is None
