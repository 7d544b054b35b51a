"""Pipelines over HTTP to test with: their steps as clients write them, created and refused."""

from typing import Any

from fastapi.testclient import TestClient

from tests.support.tuning_requests import BASE, upload

SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "operation": "eq",
    "reference": "{{ item.answer }}",
}


def batch_step(name: str, file_id: str, **fields: Any) -> dict[str, Any]:
    request = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    after = {"after": fields.pop("after")} if "after" in fields else {}
    return {"name": name, "kind": "batch", "request": request | fields} | after


def tuning_step(name: str, file_id: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "fine_tuning", "request": {"model": BASE, "training_file": file_id} | fields}


def run_step(name: str, eval_id: str, file_id: str, model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "{{ item.question }}"}]
    source = {
        "type": "completions",
        "source": {"type": "file_id", "id": file_id},
        "model": model,
        "input_messages": {"type": "template", "template": messages},
    }
    return {"name": name, "kind": "eval_run", "request": {"eval_id": eval_id, "data_source": source} | fields}


def make_eval(client: TestClient) -> str:
    schema = {"type": "object", "properties": {"question": {"type": "string"}, "answer": {"type": "string"}}}
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    made = client.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [SAME]})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def make_monitor(client: TestClient) -> str:
    body = {"name": "questions", "source": {"type": "responses"}, "embedding_model": "all-minilm-l6-v2"}
    made = client.post("/v1/drift_monitors", json=body)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def tune_and_evaluate(client: TestClient) -> list[dict[str, Any]]:
    """Return the steps of a pipeline whose second one evaluates the model of the first."""
    run = run_step("check", make_eval(client), upload(client, "evals"), "{{train.fine_tuned_model}}")
    return [tuning_step("train", upload(client)), run]


def create_pipeline(client: TestClient, *steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/pipelines", json={"steps": list(steps)} | fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error_of(client: TestClient, *steps: dict[str, Any], **fields: Any) -> tuple[int, str | None, str | None]:
    """Return how a pipeline is refused, and check that nothing of it is left."""
    answer = client.post("/v1/pipelines", json={"steps": list(steps)} | fields)
    assert client.get("/v1/jobs").json()["data"] == []
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]
