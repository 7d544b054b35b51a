"""The dry run: what a batch would say and cost, and nothing created."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tokenizers import Tokenizer, models

from api.batches import dry_run as route
from jobs.fleet import workers
from jobs.fleet.models_file import ANY_MODEL
from jobs.queues import Queue
from jobs.requests.token_estimates import input_tokens
from tests.support import worker_steps
from tests.support.web import make_key
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import client_of
from tests.unit.api.health.test_health import worker


def line(custom_id: str, **changes: Any) -> bytes:
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "all-minilm-l6-v2", "input": ["a", "b"]},
    }
    return json.dumps(request | changes).encode() + b"\n"


def dry_run(client: TestClient, data: bytes, endpoint: str = "/v1/embeddings") -> dict[str, Any]:
    file = client.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "batch"}).json()
    answer = client.post("/v1/batches/validate", json={"input_file_id": file["id"], "endpoint": endpoint})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_a_good_file_is_counted_and_estimated(client: TestClient) -> None:
    data = line("1") + b"\n" + line("2")

    found = dry_run(client, data)

    assert (found["valid"], found["requests"], found["inputs"]) == (True, 2, 4)
    assert (found["model"], found["errors"]["data"]) == ("all-minilm-l6-v2", [])
    assert found["estimate"] == {"input_tokens": input_tokens(found["bytes"]), "method": "bytes/4"}
    assert found["eta_seconds"] is None
    assert client.get("/v1/batches").json()["data"] == []


def test_every_bad_line_is_named(client: TestClient) -> None:
    data = b"".join(
        [line("1"), b"{nonsense\n", line("1"), line("4", url="/v1/completions"), b'{"custom_id":"5"}\n', b"\xff\n"]
    )

    found = dry_run(client, data)

    assert found["valid"] is False
    assert sorted((error["line"], error["code"]) for error in found["errors"]["data"]) == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_url"),
        (5, "missing_required_parameter"),
        (6, "invalid_json_line"),
    ]


def test_a_field_that_no_engine_in_process_knows_is_named(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(openai_aliases=True)
    client = client_of(app, make_key(app))
    body = {"model": "all-minilm-l6-v2", "input": "a"}
    data = b"".join([
        line("1", body=body | {"input_type": "query", "user": None, "cache": False}),
        line("2", body=body | {"foo": None}),
        line("3", body=body | {"top_k": 1, "foo": 1}),
    ])  # fmt: skip

    found = dry_run(client, data)

    assert found["valid"] is False
    assert found["errors"]["data"] == [
        {
            "code": "unknown_parameter",
            "line": 3,
            "message": "Unknown parameter: 'top_k'.",
            "param": "body.top_k",
        }
    ]
    alias, other = ({"model": name, "input": "a", "foo": 1} for name in ("text-embedding-3-small", "far"))
    with app.state.services.db.write() as session:
        workers.store_models(session, {"far": False}, Queue.EMBED)
    assert dry_run(client, line("1", body=alias))["valid"] is False
    assert dry_run(client, line("1", body=other))["valid"] is True, "a server judges its fields itself"
    with app.state.services.db.write() as session:
        workers.store_models(session, {"text-embedding-3-small": False}, Queue.EMBED)
    assert dry_run(client, line("1", body=alias))["valid"] is True, "a server has it by that name"


def test_a_schema_that_is_none_and_a_prompt_that_is_too_long_are_named(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "m" / "tokenizer.json"))
    (tmp_path / "models.yaml").write_text(
        "models:\n  m: {source: {path: m}, engine: vllm, aliases: [n], engine_args: {max_model_len: 3}}\n"
    )
    url = "/v1/chat/completions"
    messages = [{"role": "user", "content": "long"}]
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "objekt"}}}
    bodies: list[dict[str, Any]] = [
        {"messages": messages},
        {"messages": messages, "response_format": schema},
        {"messages": messages * 4},
    ]

    for model in ("m", "n"):
        data = b"".join(line(f"{n}", url=url, body=body | {"model": model}) for n, body in enumerate(bodies))
        found = dry_run(client, data, url)["errors"]["data"]
        assert [(error["line"], error["code"], error["param"]) for error in found] == [
            (2, "invalid_json_schema", "body.response_format"),
            (3, "context_length_exceeded", "body.messages"),
        ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"\n" * 1000, "empty_file"),
        (line("1", body={"model": "nobody-has-it", "input": "a"}), "model_not_found"),
    ],
)
def test_errors_of_whole_file_are_reported(client: TestClient, data: bytes, code: str) -> None:
    assert [error["code"] for error in dry_run(client, data)["errors"]["data"]] == [code]


def test_the_time_needed_is_that_of_the_last_batch_of_the_model(app: FastAPI, client: TestClient) -> None:
    from jobs.ledger.tables import Job

    db, storage = app.state.services.db, app.state.services.storage
    batch_id = create(client)["id"]
    worker_steps.plan(db, batch_id, 2, "all-minilm-l6-v2")
    worker_steps.answer(db, storage, worker_steps.take(db, batch_id), range(2), last=True)
    worker_steps.finish(db, storage, batch_id, range(2))
    with db.write() as session:
        job = session.get_one(Job, batch_id)
        job.in_progress_at = job.finalizing_at - 10

    found = dry_run(client, line("1"))

    assert found["eta_seconds"] == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize(("external", "codes"), [(False, []), (True, ["external_model_not_allowed"])])
def test_a_model_outside_the_house_needs_the_project_s_consent(
    app: FastAPI, client: TestClient, external: bool, codes: list[str]
) -> None:
    with app.state.services.db.write() as session:
        workers.store_models(session, {"far": external}, Queue.EMBED)

    found = dry_run(client, line("1", body={"model": "far", "input": "a"}))

    assert [error["code"] for error in found["errors"]["data"]] == codes


def test_an_endpoint_that_takes_any_model_makes_any_name_valid(app: FastAPI, client: TestClient) -> None:
    with app.state.services.db.write() as session:
        session.add(worker(queues=[Queue.GENERATE], models=[ANY_MODEL]))

    assert dry_run(client, line("1", body={"model": "whatever", "input": "a"}))["valid"] is True


def test_an_external_endpoint_that_takes_any_model_needs_the_permission_too(app: FastAPI, client: TestClient) -> None:
    with app.state.services.db.write() as session:
        session.add(worker(queues=[Queue.GENERATE], models=[ANY_MODEL]))
        workers.store_models(session, {ANY_MODEL: True}, Queue.GENERATE)

    found = dry_run(client, line("1", body={"model": "whatever", "input": "a"}))

    assert [error["code"] for error in found["errors"]["data"]] == ["external_model_not_allowed"]


def test_a_file_that_no_batch_reads_is_refused_as_create_refuses_it(client: TestClient) -> None:
    file = client.post("/v1/files", files={"file": ("a", line("1"))}, data={"purpose": "user_data"}).json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/embeddings"}

    dry = client.post("/v1/batches/validate", json=asked)
    created = client.post("/v1/batches", json=asked | {"completion_window": "24h"})

    assert (dry.status_code, dry.json()["error"]["code"]) == (400, "invalid_file_purpose")
    assert dry.json() == created.json()


@pytest.mark.parametrize(("spare", "codes"), [(0, []), (-1, ["token_limit_exceeded"])])
def test_exceeded_queue_limit_of_project_is_reported(
    make_app: Callable[..., FastAPI], spare: int, codes: list[str]
) -> None:
    waiting = line("1") * 3
    limit = input_tokens(len(waiting) + len(line("1"))) + spare
    app = make_app(project_max_queued_tokens=limit)
    client = client_of(app, make_key(app))
    file_id = client.post("/v1/files", files={"file": ("a", waiting)}, data={"purpose": "batch"}).json()["id"]
    worker_steps.plan(app.state.services.db, create(client, file_id)["id"], 3, "all-minilm-l6-v2")

    found = dry_run(client, line("1"))

    assert [error["code"] for error in found["errors"]["data"]] == codes
    assert found["valid"] is (not codes)


def test_an_unknown_file_is_404(client: TestClient) -> None:
    answer = client.post("/v1/batches/validate", json={"input_file_id": "file-x", "endpoint": "/v1/embeddings"})

    assert answer.status_code == 404


def test_validation_child_over_memory_limit_is_reported(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(route._LIMITS, memory_bytes=1 << 20)  # an interpreter needs more
    monkeypatch.setattr(route, "_LIMITS", limits)
    file = client.post("/v1/files", files={"file": ("a", line("1"))}, data={"purpose": "batch"}).json()

    answer = client.post("/v1/batches/validate", json={"input_file_id": file["id"], "endpoint": "/v1/embeddings"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "validation_gave_up"
