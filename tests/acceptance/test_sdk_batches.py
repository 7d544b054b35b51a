"""`client.batches` and `client.models`, and our own routes through the SDK's own transport."""

from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.types import Batch

from tests.support import worker_steps

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"all-minilm-l6-v2","input":"x"}}\n'


def create(sdk: openai.OpenAI, **more: Any) -> Batch:
    file = sdk.files.create(file=("a.jsonl", LINE), purpose="batch")
    return sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"k": "v"}, **more
    )


def test_a_batch_is_created_retrieved_and_listed(sdk: openai.OpenAI, other_sdk: openai.OpenAI) -> None:
    made = [create(sdk) for _ in range(3)]

    assert made[0].status == "validating"
    assert sdk.batches.retrieve(made[0].id).metadata == {"k": "v"}
    assert [batch.id for batch in sdk.batches.list(limit=1)] == [batch.id for batch in reversed(made)]
    assert list(other_sdk.batches.list()) == []


def test_a_batch_is_followed_to_its_output(sdk: openai.OpenAI, web: FastAPI) -> None:
    batch = create(sdk)
    worker_steps.run(web.state.services.db, web.state.services.storage, batch.id, 2)

    ended = sdk.batches.retrieve(batch.id)

    assert (ended.status, ended.model) == ("completed", "m")
    assert ended.request_counts is not None
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (2, 2, 0)
    assert ended.usage is not None
    assert ended.usage.total_tokens == 10
    assert ended.output_file_id is not None
    assert len(sdk.files.content(ended.output_file_id).text.splitlines()) == 2


def test_a_failed_batch_tells_why(sdk: openai.OpenAI, web: FastAPI) -> None:
    batch = create(sdk)
    error = {"code": "invalid_url", "line": 7, "message": "The URL …", "param": "url"}
    worker_steps.fail(web.state.services.db, batch.id, [error])

    ended = sdk.batches.retrieve(batch.id)

    assert ended.status == "failed"
    assert ended.errors is not None
    assert ended.errors.data is not None
    assert ended.errors.data[0].model_dump() == error


def test_our_fields_travel_in_extra_body(sdk: openai.OpenAI) -> None:
    batch = create(
        sdk,
        output_expires_after={"anchor": "created_at", "seconds": 7200},
        extra_body={"priority": 5, "dedupe": True, "webhook": {"url": "http://127.0.0.1:9/hook"}},
    )

    job = sdk.get(f"/jobs/{batch.id}", cast_to=object)

    assert isinstance(job, dict)
    assert (job["priority"], job["webhook"]) == (5, {"url": "http://127.0.0.1:9/hook"})


def test_cancelling_is_answered_once_and_not_retried(sdk: openai.OpenAI, web: FastAPI) -> None:
    batch, ended = create(sdk), create(sdk)
    worker_steps.run(web.state.services.db, web.state.services.storage, ended.id, 1)
    asked: list[str] = []
    sdk._client.event_hooks["request"].append(lambda request: asked.append(request.url.path))

    assert [sdk.batches.cancel(batch.id).status for _ in range(2)] == ["cancelling"] * 2
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        sdk.batches.cancel(ended.id)

    assert asked.count(f"/v1/batches/{ended.id}/cancel") == 1


def test_repeated_key_creates_single_batch_and_finds_its_job(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("a.jsonl", LINE), purpose="batch")

    def make(priority: int) -> Any:
        return sdk.batches.with_raw_response.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "k"},
            extra_body={"priority": priority},
        )

    first, second = make(0), make(0)

    assert second.parse().id == first.parse().id
    assert second.headers["idempotency-replayed"] == "true"
    with pytest.raises(openai.UnprocessableEntityError):
        make(1)
    found = sdk.get("/jobs", cast_to=object, options={"params": {"idempotency_key": "k"}})
    assert isinstance(found, dict)
    assert [job["id"] for job in found["data"]] == [first.parse().id]


def test_bad_creates_are_the_sdk_s_bad_requests(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as endpoint:
        sdk.batches.create(input_file_id="f", endpoint="/v1/nothing", completion_window="24h")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as window:
        sdk.batches.create(input_file_id="f", endpoint="/v1/embeddings", completion_window="1y")  # type: ignore[arg-type]

    assert (endpoint.value.param, endpoint.value.code) == ("endpoint", "invalid_value")
    assert "/v1/chat/completions" in endpoint.value.message
    assert window.value.param == "completion_window"


def test_models_are_listed_retrieved_and_protected(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]

    assert "all-minilm-l6-v2" in names
    assert sdk.models.retrieve(names[0]).object == "model"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("Qwen/Qwen3-0.6B")
    with pytest.raises(openai.PermissionDeniedError):
        sdk.models.delete(names[0])
