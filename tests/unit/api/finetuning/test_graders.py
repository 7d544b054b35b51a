"""Graders validated and run on one sample over HTTP, as the official SDK reads the answers."""

from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse

from jobs.errors import NightmillError, WorkerLost
from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.queues import Queue
from tests.support.web import running_app
from tests.support.worker_rows import worker_row

URL = "/v1/fine_tuning/alpha/graders"
EMBEDDER = "all-minilm-l6-v2"
MODELS = f"""
models:
  {EMBEDDER}: {{source: {{packaged: {EMBEDDER}}}, engine: embed}}
  judge: {{source: {{urls: ["http://127.0.0.1:9/v1"]}}, engine: http, endpoints: [/v1/chat/completions]}}
"""
STRING = {
    "type": "string_check", "name": "same", "operation": "eq", "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}  # fmt: skip
SCORE: dict[str, Any] = {
    "type": "score_model", "name": "quality", "model": "judge",
    "input": [{"role": "user", "content": "Judge {{ sample.output_text }}"}],
}  # fmt: skip
PYTHON: dict[str, Any] = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n    return len(sample['output_text'])",
}
MULTI: dict[str, Any] = {
    "type": "multi", "name": "both", "graders": {"same": STRING, "quality": SCORE},
    "calculate_output": "same + quality",
}  # fmt: skip


class Models:
    """A judge and an embedding model that answer what a test says; `requests` are those that they got."""

    def __init__(self, app: FastAPI) -> None:
        self.answer: Callable[[QueuedRequest], Any] = lambda _: {"steps": [], "result": 0.75}
        self.requests: list[QueuedRequest] = []
        self.inner, app.state.services.inference = app.state.services.inference, self
        with app.state.services.db.write() as session:
            for queue, model in ((Queue.EMBED, EMBEDDER), (Queue.GENERATE, "judge")):
                session.add(worker_row(queue, queue, model))

    async def submit(self, _queue: str, queued: QueuedRequest, *_: Any, **_options: Any) -> AsyncGenerator[AnswerEntry]:
        self.requests.append(queued)
        answer = self.answer(queued)
        if isinstance(answer, NightmillError):
            raise answer
        if not (isinstance(answer, dict) and "data" in answer):
            content = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
            choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            answer = {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}
        yield AnswerEntry("end", msgspec.json.encode(answer))

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    models = tmp_path / "models.yaml"
    models.write_text(MODELS)
    with running_app(tmp_path, sqlite_url, models_file=str(models)) as app:
        yield app


@pytest.fixture
def models(app: FastAPI) -> Models:
    return Models(app)


def run(client: TestClient, grader: Any, sample: str = "Paris", item: Any = None) -> GraderRunResponse:
    body = {"grader": grader, "model_sample": sample, "item": item or {"answer": "Paris"}}
    answer = client.post(f"{URL}/run", json=body)
    assert answer.status_code == 200, answer.text
    return GraderRunResponse.model_validate(answer.json())


def set_errors(response: GraderRunResponse) -> set[str]:
    return {name for name, value in response.metadata.errors.model_dump(by_alias=True).items() if value}


def test_a_grader_that_needs_no_model_is_run(client: TestClient) -> None:
    response = run(client, STRING)
    assert (response.reward, response.metadata.name, response.metadata.type) == (1.0, "same", "string_check")
    assert (set_errors(response), response.metadata.token_usage) == (set(), None)
    assert run(client, STRING, "London").reward == 0.0


def test_score_model_grader_queries_judge_and_counts_tokens(client: TestClient, models: Models) -> None:
    response = run(client, SCORE)
    assert (response.reward, response.metadata.token_usage) == (0.75, 8)
    assert response.metadata.sampled_model_name == "judge"
    assert response.api_model_grader_token_usage_per_model["judge"] == {
        "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
    }  # fmt: skip
    [asked] = models.requests
    assert b"Judge Paris" in asked.body


def test_a_multi_names_the_scores_of_its_graders(client: TestClient, models: Models) -> None:
    response = run(client, MULTI)
    assert (response.reward, response.sub_rewards) == (1.75, {"same": 1.0, "quality": 0.75})


def test_the_cosine_is_of_the_deployments_embedding_model(client: TestClient, models: Models) -> None:
    models.answer = lambda _: {"data": [{"embedding": [1, 0]}, {"embedding": [1, 1]}]}
    cosine = {**STRING, "type": "text_similarity", "evaluation_metric": "cosine"}
    del cosine["operation"]
    assert run(client, cosine).reward == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("grader", "answer", "errors"),
    [
        (SCORE, "nonsense", {"model_grader_parse_error"}),
        (SCORE, WorkerLost(), {"model_grader_server_error", "model_grader_server_error_details"}),
        ({**SCORE, "model": "none"}, "", {"model_grader_server_error", "model_grader_server_error_details"}),
        ({**STRING, "reference": "{{ item.missing }}"}, "", {"invalid_variable_error"}),
        ({**STRING, "input": "{{ sample.output_json.x }}"}, "", {"sample_parse_error"}),
        ({**MULTI, "calculate_output": "1 / (same - 1)"}, {"steps": [], "result": 1}, {"formula_parse_error"}),
    ],
)
def test_an_error_of_the_grader_is_flagged_and_gives_no_reward(
    client: TestClient, models: Models, grader: Any, answer: Any, errors: set[str]
) -> None:
    models.answer = lambda _: answer
    response = run(client, grader)
    assert (response.reward, set_errors(response)) == (0.0, errors)


def test_python_grader_runs_only_with_working_sandbox(client: TestClient, app: FastAPI) -> None:
    def answer_beside(*lacking: list[str] | None) -> Any:
        for lacks in lacking:
            with app.state.services.db.write() as session:
                session.merge(worker_row("cpu", Queue.EVALUATE, sandbox_lacks=lacks))
        return client.post(f"{URL}/run", json={"grader": PYTHON, "model_sample": "x"})

    for starting in (answer_beside(), answer_beside(None)):
        assert (starting.status_code, starting.json()["error"]["code"]) == (503, "sandbox_unknown")
        assert int(starting.headers["Retry-After"]) > 0
    never = answer_beside(["landlock"])
    assert (never.status_code, never.json()["error"]["code"]) == (400, "sandbox_unavailable")
    answer_beside([])
    assert run(client, PYTHON, "four").reward == 4.0
    failed = run(client, {**PYTHON, "source": "def grade(sample, item):\n    return open('/etc/passwd').read()"})
    assert failed.reward == 0.0
    assert set_errors(failed) == {"python_grader_runtime_error", "python_grader_runtime_error_details"}
    assert "FileNotFoundError" in (failed.metadata.errors.python_grader_runtime_error_details or "")


def test_a_valid_grader_is_returned_as_it_would_be_stored(client: TestClient) -> None:
    answer = client.post(f"{URL}/validate", json={"grader": MULTI})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"grader": MULTI}
    assert GraderValidateResponse.model_validate({"grader": STRING}).grader is not None


@pytest.mark.parametrize("source", ["def grade(:", "x = 1"])
def test_code_that_cannot_grade_is_not_valid(client: TestClient, app: FastAPI, source: str) -> None:
    with app.state.services.db.write() as session:
        session.add(worker_row("w", Queue.EVALUATE, sandbox_lacks=[]))
    multi = {**MULTI, "graders": {**MULTI["graders"], "same": {**PYTHON, "source": source}}}

    answers = [
        client.post(f"{URL}/validate", json={"grader": grader}) for grader in ({**PYTHON, "source": source}, multi)
    ]

    errors = [answer.json()["error"] for answer in answers]
    assert [(answer.status_code, error["code"]) for answer, error in zip(answers, errors, strict=True)] == [
        (400, "invalid_source")
    ] * 2
    assert [error["param"] for error in errors] == ["grader.source", "grader.graders.same.source"]
    assert client.post(f"{URL}/validate", json={"grader": PYTHON}).status_code == 200


@pytest.mark.parametrize("route", ["validate", "run"])
@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"type": "magic"}, "grader.type", "invalid_value"),
        ({"operation": "neq"}, "grader.operation", "invalid_value"),
        ({"name": None}, "grader.name", "invalid_type"),
        ({"input": "{{ other.x }}"}, "grader.input", "invalid_value"),
        ({"extra": 1}, "grader.extra", "unknown_parameter"),
        ({**SCORE, "range": [1, 0]}, "grader", "invalid_value"),
        ({**MULTI, "calculate_output": "none"}, "grader", "invalid_value"),
        ({**MULTI, "graders": {"a": MULTI}}, "grader.graders.a.type", "invalid_value"),
    ],
)
def test_an_invalid_grader_is_refused_at_its_field(
    client: TestClient, route: str, changes: dict[str, Any], param: str, code: str
) -> None:
    grader = changes if "model" in changes or "graders" in changes else {**STRING, **changes}
    body = {"grader": grader} | ({"model_sample": "x"} if route == "run" else {})
    answer = client.post(f"{URL}/{route}", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
