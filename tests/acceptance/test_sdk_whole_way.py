"""The official SDK in front, the real dispatcher, planner, runner and finisher behind, the fake engine at the end."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from openai.types import Batch

from jobs.db.engine import Database
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from tests.support.web import make_key, running_app, serve


@pytest.fixture
def asked() -> list[str]:
    """Return what the engine was asked, prompt by prompt."""
    return []


@pytest.fixture
def inline(db: Database, tmp_path: Path, asked: list[str]) -> Iterator[InlineDeployment]:
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked.append)) as inline:
        yield inline


@pytest.fixture
def web(inline: InlineDeployment, db: Database, tmp_path: Path) -> Iterator[FastAPI]:
    with running_app(tmp_path, db.url) as app:
        yield app


@pytest.fixture
def sdk(web: FastAPI) -> Iterator[openai.OpenAI]:
    with serve(web) as url, openai.OpenAI(api_key=make_key(web), base_url=f"{url}/v1") as client:
        yield client


def submit(sdk: openai.OpenAI, lines: list[dict[str, Any]] | bytes, **more: Any) -> Batch:
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    file = sdk.files.create(file=("input.jsonl", content), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


def ended(sdk: openai.OpenAI, inline: InlineDeployment, batch: Batch) -> Batch:
    inline.drain(batch.id)
    return sdk.batches.retrieve(batch.id)


def lines_of(sdk: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    assert file_id is not None
    lines = [json.loads(line) for line in sdk.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def test_a_batch_goes_from_file_to_file(sdk: openai.OpenAI, inline: InlineDeployment) -> None:
    batch = ended(sdk, inline, submit(sdk, [chat_line(f"c{n}", f"question {n}") for n in range(30)]))

    output = lines_of(sdk, batch.output_file_id)
    assert (batch.status, batch.error_file_id, batch.model) == ("completed", None, MODEL)
    assert set(output) == {f"c{n}" for n in range(30)}
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (30, 30, 0)
    usages = [line["response"]["body"]["usage"] for line in output.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    results = sdk.get(f"/jobs/{batch.id}/results", cast_to=str)
    assert results == sdk.files.content(batch.output_file_id or "").text


def test_batch_starts_after_its_dependencies_complete(
    sdk: openai.OpenAI, inline: InlineDeployment, asked: list[str]
) -> None:
    first = submit(sdk, [chat_line("a", "first")])
    second = submit(sdk, [chat_line("a", "second")], extra_body={"after": [first.id]})
    third = submit(sdk, [chat_line("a", "third")], extra_body={"after": [first.id, second.id]})

    waits = [sdk.batches.retrieve(batch.id).model_extra for batch in (second, third)]
    assert waits == [
        {"after": [first.id], "waiting_for": "waiting_for_job", "resolved_model": None},
        {"after": sorted([first.id, second.id]), "waiting_for": "waiting_for_job", "resolved_model": None},
    ]
    for batch in (third, second, first, second, third):
        inline.drain(batch.id)

    assert [sdk.batches.retrieve(batch.id).status for batch in (first, second, third)] == ["completed"] * 3
    assert [next(word for word in ("first", "second", "third") if word in prompt) for prompt in asked] == [
        "first", "second", "third",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"{nonsense\n", "invalid_json_line", 1),
        (jsonl([chat_line("a", "x"), chat_line("a", "y")]), "duplicate_custom_id", 2),
        (jsonl([chat_line("a", "x", stream=True)]), "streaming_unsupported", 1),
        (jsonl([chat_line("a", "x") | {"url": "/v1/embeddings"}]), "invalid_url", 1),
    ],
)
def test_a_file_that_is_no_good_fails_the_batch_with_its_line(
    sdk: openai.OpenAI, inline: InlineDeployment, asked: list[str], content: bytes, code: str, line: int | None
) -> None:
    batch = ended(sdk, inline, submit(sdk, content))

    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, line)]
    assert asked == []


def test_a_file_that_does_not_exist_fails_the_batch(sdk: openai.OpenAI, inline: InlineDeployment) -> None:
    batch = ended(
        sdk,
        inline,
        sdk.batches.create(input_file_id="file-unknown", endpoint="/v1/chat/completions", completion_window="24h"),
    )

    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.status, batch.errors.data[0].code, batch.errors.data[0].param) == (
        "failed",
        "invalid_request",
        "file_id",
    )


def test_a_deleted_input_is_read_to_its_end(sdk: openai.OpenAI, inline: InlineDeployment) -> None:
    batch = submit(sdk, [chat_line(f"c{n}", "x") for n in range(3)])
    sdk.files.delete(batch.input_file_id)

    done = ended(sdk, inline, batch)

    assert (done.status, len(lines_of(sdk, done.output_file_id))) == ("completed", 3)


def test_cancelled_batch_returns_finished_lines_and_lists_unfinished_lines(
    sdk: openai.OpenAI, inline: InlineDeployment
) -> None:
    lines = [chat_line(f"c{n}", "quick" if n < 8 else "!slow") for n in range(24)]
    batch = submit(sdk, lines)
    inline.until(lambda: (sdk.batches.retrieve(batch.id).request_counts or batch.request_counts).completed >= 8)  # type: ignore[union-attr]

    assert sdk.batches.cancel(batch.id).status == "cancelling"
    done = ended(sdk, inline, batch)

    output, errors = lines_of(sdk, done.output_file_id), lines_of(sdk, done.error_file_id)
    assert done.status == "cancelled"
    assert set(output) | set(errors) == {f"c{n}" for n in range(24)}
    assert not set(output) & set(errors)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}


def test_retry_runs_only_failed_lines_with_overrides(
    sdk: openai.OpenAI, inline: InlineDeployment, asked: list[str]
) -> None:
    lines = [chat_line(f"c{n}", "fine" if n % 3 else "bad", **({} if n % 3 else {"model": MODEL})) for n in range(9)]
    for n in (0, 3, 6):
        lines[n]["body"]["messages"] = "!500"
    old = ended(sdk, inline, submit(sdk, lines))
    before = sdk.batches.retrieve(old.id)
    assert old.request_counts is not None
    assert (old.request_counts.completed, old.request_counts.failed) == (6, 3)
    asked.clear()

    overrides = {"messages": [{"role": "user", "content": "now it works"}]}
    new = sdk.post(f"/jobs/{old.id}/retry", cast_to=object, body={"overrides": overrides})
    assert isinstance(new, dict)
    done = ended(sdk, inline, sdk.batches.retrieve(new["id"]))

    assert (done.status, set(lines_of(sdk, done.output_file_id))) == ("completed", {"c0", "c3", "c6"})
    assert asked == ["now it works"] * 3
    assert sdk.batches.retrieve(old.id) == before


def test_results_and_events_are_followed_while_it_runs(sdk: openai.OpenAI, inline: InlineDeployment) -> None:
    http = httpx2.Client(base_url=sdk.base_url, headers=sdk.auth_headers, timeout=30)
    batch = submit(sdk, [chat_line(f"c{n}", f"q {n}") for n in range(20)])
    got: list[str] = []
    kinds: list[str] = []

    def follow() -> None:
        with http.stream("GET", f"jobs/{batch.id}/results") as answer:
            got.extend(json.loads(line)["custom_id"] for line in answer.iter_lines())

    def listen() -> None:
        with http.stream("GET", f"jobs/{batch.id}/events", headers={"Accept": "text/event-stream"}) as answer:
            kinds.extend(line for line in answer.iter_lines() if line.startswith("event: "))

    threads = [threading.Thread(target=one) for one in (follow, listen)]
    for thread in threads:
        thread.start()
    inline.drain(batch.id)
    for thread in threads:
        thread.join(30)
    http.close()

    assert sorted(got) == sorted(f"c{n}" for n in range(20))
    assert kinds[0] == "event: job.created"
    assert kinds[-1] == "event: batch.completed"
