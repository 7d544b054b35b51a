"""Interactive requests by model: how long their clients waited, for how many tokens, and what went wrong."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from api.health.metrics import REGISTRY
from api.inference import request_metrics
from api.inference.request_metrics import RequestMetrics
from jobs.errors import NoWorker
from jobs.inference.interactive import AnswerEntry
from workers.engines.port import Answer, Usage, refusal
from workers.inference.answer_writer import end_of

USAGE = Usage(input_tokens=7, cached_tokens=2, output_tokens=5, reasoning_tokens=1)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """Return a model of the test's own: counters live as long as the process."""
    return str(request.node.name)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"nightmill_interactive_{name}", labels) or 0.0


async def answer(*entries: AnswerEntry | Exception) -> AsyncGenerator[AnswerEntry]:
    for entry in entries:
        if isinstance(entry, Exception):
            raise entry
        yield entry


async def read(model: str, *entries: AnswerEntry | Exception) -> list[str]:
    return [entry.kind async for entry in RequestMetrics(model).follow(answer(*entries))]


async def test_an_answer_is_measured_with_its_tokens(model: str) -> None:
    kinds = await read(model, AnswerEntry("taken"), end_of(Answer(200, b"{}", USAGE)))

    assert kinds == ["taken", "end"]
    assert value("seconds_count", model=model) == 1
    assert value("first_token_seconds_count", model=model) == 0
    assert value("tokens_per_second_count", model=model) == 1
    used = {kind: value("tokens_total", model=model, type=kind) for kind in ("input", "cached", "output", "reasoning")}
    assert used == {"input": 7, "cached": 2, "output": 5, "reasoning": 1}


async def test_the_first_token_is_that_of_the_first_chunk_with_any(model: str) -> None:
    created = AnswerEntry("chunk", b'{"response": {}, "sequence_number": 0, "type": "response.created"}')
    stream = RequestMetrics(model).follow(
        answer(created, AnswerEntry("chunk", b'{"type":"response.output_text.delta"}'), AnswerEntry("chunk", b"{}"))
    )

    await anext(stream)
    before = value("first_token_seconds_count", model=model)
    await anext(stream)
    await anext(stream)

    assert (before, value("first_token_seconds_count", model=model)) == (0, 1)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (NoWorker(), "no_worker"),
        (end_of(refusal(503, "Later.", code="engine_busy")), "engine_busy"),
        (end_of(Answer(502, b"<html>")), "502"),
        (end_of(refusal(400, "No.", code="code with spaces and more, " * 9)), "400"),
    ],
)
async def test_errors_are_counted_by_code(model: str, end: Any, code: str) -> None:
    with suppress(NoWorker):
        await read(model, end)

    assert value("errors_total", model=model, code=code) == 1
    assert value("seconds_count", model=model) == 0


async def test_a_request_waits_until_a_worker_has_it_or_its_client_leaves(model: str) -> None:
    taken = RequestMetrics(model).follow(answer(AnswerEntry("late"), AnswerEntry("taken"), AnswerEntry("alive")))
    left = RequestMetrics(model).follow(answer(AnswerEntry("late"), AnswerEntry("late")))

    await anext(taken)
    await anext(left)
    both = value("waiting", model=model)
    await anext(taken)
    one = value("waiting", model=model)
    await left.aclose()

    assert (both, one, value("waiting", model=model)) == (2, 1, 0)


async def test_codes_that_a_server_makes_up_are_not_counted_without_end(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_metrics, "_codes", set())
    for number in range(300):
        await read(model, end_of(refusal(500, "No.", code=f"made_up_{number}")))

    families = [family for family in REGISTRY.collect() if family.name == "nightmill_interactive_errors"]
    series = [sample for family in families for sample in family.samples if sample.labels["model"] == model]
    assert len({sample.labels["code"] for sample in series}) <= 101
    assert value("errors_total", model=model, code="500") >= 200


def test_names_that_clients_choose_are_no_labels(client: TestClient) -> None:
    before = value("errors_total", model="other", code="model_not_found")
    for number in range(3):
        body = {"model": f"ft:made-up-{number}", "messages": [{"role": "user", "content": "Hi"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 404

    assert value("errors_total", model="other", code="model_not_found") == before + 3
    assert value("errors_total", model="ft:made-up-0", code="model_not_found") == 0


def test_a_model_that_no_worker_serves_is_named(client: TestClient) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    before = value("errors_total", model="smollm2-135m-instruct", code="no_worker")

    answer = client.post("/v1/chat/completions", json={"model": "smollm2-135m-instruct", "messages": messages})

    assert answer.status_code == 503
    assert value("errors_total", model="smollm2-135m-instruct", code="no_worker") == before + 1


def test_end_entry_with_usage_is_compatible_with_older_workers_and_api() -> None:
    class Before(msgspec.Struct, frozen=True, omit_defaults=True):
        kind: str
        body: bytes = b""
        status: int = 200

    packed = msgspec.msgpack.encode(end_of(Answer(200, b"{}", USAGE)))

    assert msgspec.msgpack.decode(packed, type=Before) == Before("end", b"{}", 200)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Before("end", b"{}")), type=AnswerEntry).usage == ()
