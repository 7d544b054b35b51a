"""The engine port: one suite over the fake, the same on a loop of its own, and the HTTP adapter against a server.

Generation and embedding on real models have files of their own: they can't be told to break.
"""

import asyncio
import base64
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.inference.complete_answers import complete_response
from tests.support import stub_engine
from tests.support.fake_engine import FakeEngine
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.ownloop import OwnLoop
from workers.engines.port import (
    Answer,
    Engine,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineFault,
    Request,
    Usage,
)

CHAT, TEXT, RESPONSES, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
MODEL = "stub-model"


@dataclass
class Subject:
    """An engine under test, and what it was asked."""

    engine: Engine
    prompts: Callable[[], list[str]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stub") / "prompts.log"


@pytest.fixture(scope="module")
def stub(log: Path) -> Iterator[str]:
    with stub_engine.running(log, "--models", MODEL) as url:
        yield url


@contextlib.asynccontextmanager
async def fake() -> AsyncIterator[Subject]:
    prompts: list[str] = []
    engine = FakeEngine((MODEL,), timeout=0.5, on_prompt=prompts.append)
    await engine.start()
    try:
        yield Subject(engine, lambda: prompts)
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def over_http(url: str, log: Path, seconds: float = 6) -> AsyncIterator[Subject]:
    """Half of `seconds` is for a connection: a busy machine may stand still for one of them."""
    engine = HttpEngine([Endpoint(url)], timeout=seconds)
    before = len(stub_engine.prompts(log))
    await engine.start()
    try:
        yield Subject(engine, lambda: stub_engine.prompts(log)[before:])
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def on_a_thread_of_its_own() -> AsyncIterator[Subject]:
    prompts: list[str] = []
    engine = OwnLoop([MODEL], lambda: FakeEngine((MODEL,), timeout=0.5, on_prompt=prompts.append))
    await engine.start()
    try:
        yield Subject(engine, lambda: prompts)
    finally:
        await engine.close()


@pytest.fixture(params=["fake", "own-loop", "http"])
async def subject(request: pytest.FixtureRequest, log: Path) -> AsyncIterator[Subject]:
    if request.param == "fake":
        async with fake() as running:
            yield running
    elif request.param == "own-loop":
        async with on_a_thread_of_its_own() as running:
            yield running
    else:
        async with over_http(request.getfixturevalue("stub"), log) as running:
            yield running


def chat(prompt: str, **more: Any) -> Request:
    return Request(CHAT, {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}, "req")


def body_of(answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    return body


def usage_in(body: dict[str, Any]) -> Usage:
    said = body["usage"]
    if "input_tokens" in said:
        details = (
            said["input_tokens_details"]["cached_tokens"],
            said["output_tokens_details"]["reasoning_tokens"],
        )
        return Usage(said["input_tokens"], details[0], said["output_tokens"], details[1])
    if "completion_tokens" not in said:
        return Usage(said["prompt_tokens"])
    cached = said["prompt_tokens_details"]["cached_tokens"]
    reasoning = said["completion_tokens_details"]["reasoning_tokens"]
    return Usage(said["prompt_tokens"], cached, said["completion_tokens"], reasoning)


REQUESTS = {
    CHAT: {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "what? " * 40}]},
    TEXT: {"prompt": "once upon a time " * 20},
    RESPONSES: {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi " * 30}]}]},
    EMBED: {"input": ["one", "two", "three"]},
}


@pytest.mark.parametrize("url", REQUESTS)
async def test_answer_is_json_and_its_usage_matches_body(subject: Subject, url: str) -> None:
    answer = await subject.engine.answer(Request(url, {"model": MODEL, **REQUESTS[url]}, "req"))

    assert answer.status == 200
    assert answer.usage == usage_in(body_of(answer))
    assert answer.usage.input_tokens > 0
    assert body_of(answer)["model"] == MODEL


async def streamed(engine: Engine, request: Request) -> tuple[Answer, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    async def emit(event: bytes) -> None:
        events.append(msgspec.json.decode(event))

    return await engine.stream(request, emit), events


async def test_a_message_says_that_nothing_was_refused(subject: Subject) -> None:
    assert body_of(await subject.engine.answer(chat("hello")))["choices"][0]["message"]["refusal"] is None


async def test_a_stream_without_usage_says_nothing_of_it(subject: Subject) -> None:
    _, events = await streamed(subject.engine, chat("hello"))

    assert not any("usage" in event for event in events)


async def test_a_stream_says_the_same_in_pieces(subject: Subject) -> None:
    whole = body_of(await subject.engine.answer(chat("hello")))

    end, events = await streamed(subject.engine, chat("hello", stream_options={"include_usage": True}))

    assert (end.status, end.body) == (200, b"")
    said = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(said) == whole["choices"][0]["message"]["content"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[-1]["usage"] == whole["usage"]
    assert [event["usage"] for event in events[:-1]] == [None] * len(events[:-1])
    assert subject.prompts() == ["hello", "hello"]


async def test_a_response_is_streamed_as_named_events(subject: Subject) -> None:
    request = Request(RESPONSES, {"model": MODEL, **REQUESTS[RESPONSES]}, "req")
    whole = body_of(await subject.engine.answer(request))

    end, events = await streamed(subject.engine, request)

    assert (end.status, end.body) == (200, b"")
    assert "".join(event.get("delta", "") for event in events) == whole["output"][0]["content"][0]["text"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    # The API completes both: servers say less than they may, in events less than in a whole answer.
    streamed_whole, asked_whole = [complete_response(one, request.body, 0) for one in (events[-1]["response"], whole)]
    assert streamed_whole | {"completed_at": 0} == asked_whole | {"completed_at": 0}


async def test_a_refusal_comes_instead_of_a_stream(subject: Subject) -> None:
    end, events = await streamed(subject.engine, Request(CHAT, {"model": "nobody", "messages": []}, "req"))

    assert (end.status, body_of(end)["error"]["code"]) == (404, "model_not_found")
    assert events == []


async def test_a_stream_that_ends_too_early_is_a_fault(subject: Subject) -> None:
    with pytest.raises(EngineFault, match=r"stream|ended"):
        await streamed(subject.engine, chat("!cut in the middle"))


async def test_equal_prompts_get_equal_answers_and_other_prompt_differs(subject: Subject) -> None:
    first, again, other = [await subject.engine.answer(chat(prompt)) for prompt in ("a", "a", "b")]

    assert first == again
    assert body_of(first)["choices"] != body_of(other)["choices"]


async def test_many_requests_at_once_each_get_their_own_answer(subject: Subject) -> None:
    prompts = [f"prompt {number}" for number in range(300)]
    alone = [await subject.engine.answer(chat(prompt)) for prompt in prompts[:3]]

    answers = await asyncio.gather(*(subject.engine.answer(chat(prompt)) for prompt in prompts))

    assert answers[:3] == alone
    assert len({answer.body for answer in answers}) == 300


async def test_every_prompt_is_known_before_its_answer(subject: Subject) -> None:
    await subject.engine.answer(chat('two\nlines "and" quotes'))

    assert subject.prompts() == ['two\nlines "and" quotes']


async def test_unknown_model_is_an_answer_in_openais_shape(subject: Subject) -> None:
    answer = await subject.engine.answer(Request(CHAT, {"model": "other", "messages": []}, "req"))

    assert answer.status == 404
    assert body_of(answer)["error"]["code"] == "model_not_found"


async def test_models_are_listed_by_the_engine(subject: Subject) -> None:
    assert subject.engine.models == (MODEL,)


FAULTS = {
    "!reset": EngineFault,
    "!hang": EngineFault,
    "!500": EngineFault,
    "!html": EngineFault,
    "!huge": EngineFault,
    "!503": EngineBusy,
    "!429": EngineBusy,
}


@pytest.mark.parametrize(
    "word", [pytest.param(word, marks=[pytest.mark.verify] if word == "!hang" else []) for word in FAULTS]
)
async def test_broken_request_raises_the_error_of_its_kind(subject: Subject, word: str) -> None:
    with pytest.raises(EngineError) as caught:
        await subject.engine.answer(chat(f"please {word}"))

    assert type(caught.value) is FAULTS[word]


async def test_server_error_carries_its_answer(subject: Subject) -> None:
    with pytest.raises(EngineFault) as caught:
        await subject.engine.answer(chat("!500"))

    assert caught.value.answer
    assert caught.value.answer.status == 500
    assert body_of(caught.value.answer)["error"]["message"]


async def test_item_that_is_refused_twice_is_answered_the_third_time(subject: Subject) -> None:
    for _ in range(2):
        with pytest.raises(EngineFault):
            await subject.engine.answer(chat("!flaky2 item"))

    assert (await subject.engine.answer(chat("!flaky2 item"))).status == 200


async def test_neighbours_of_a_broken_request_are_answered(subject: Subject) -> None:
    prompts = ["a", "!reset", "b", "!html", "c", "!huge", "d"]

    outcomes = await asyncio.gather(
        *(subject.engine.answer(chat(prompt)) for prompt in prompts), return_exceptions=True
    )

    assert [isinstance(outcome, Answer) for outcome in outcomes] == ["!" not in prompt for prompt in prompts]


async def test_cancelled_request_ends_at_once_and_the_engine_goes_on(subject: Subject) -> None:
    task = asyncio.create_task(subject.engine.answer(chat("!slow")))
    await asyncio.sleep(0.05)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(0.5):
            await task

    assert (await subject.engine.answer(chat("next"))).status == 200


async def test_start_is_idempotent_and_close_too(subject: Subject) -> None:
    await subject.engine.start()
    assert (await subject.engine.answer(chat("a"))).status == 200
    await subject.engine.close()
    await subject.engine.close()


async def test_base64_vectors_are_the_float_vectors(subject: Subject) -> None:
    def embed(encoding: str) -> Request:
        return Request(EMBED, {"model": MODEL, "input": "x", "encoding_format": encoding, "dimensions": 6}, "req")

    floats = body_of(await subject.engine.answer(embed("float")))["data"][0]["embedding"]
    packed = body_of(await subject.engine.answer(embed("base64")))["data"][0]["embedding"]

    assert list(struct.unpack("<6f", base64.b64decode(packed))) == pytest.approx(floats, abs=1e-6)


async def test_fake_and_stub_give_the_same_answers(stub: str, log: Path) -> None:
    async with fake() as near, over_http(stub, log) as far:
        assert await near.engine.answer(chat("hello")) == await far.engine.answer(chat("hello"))


async def test_crashed_fake_is_dead_until_restart() -> None:
    async with fake() as subject:
        with pytest.raises(EngineDead):
            await subject.engine.answer(chat("!crash"))
        with pytest.raises(EngineDead):
            await subject.engine.answer(chat("a"))

        await subject.engine.start()

        assert (await subject.engine.answer(chat("a"))).status == 200


async def test_fake_raises_configured_fault() -> None:
    def second_is_busy(request: Request) -> Exception | None:
        return EngineBusy("told so", 3.0) if "2" in str(request.body) else None

    engine = FakeEngine((MODEL,), fault=second_is_busy)
    await engine.start()

    assert (await engine.answer(chat("1"))).status == 200
    with pytest.raises(EngineBusy, match="told so"):
        await engine.answer(chat("2"))


async def test_requests_of_a_server_that_crashes_are_faults_and_the_next_ones_busy(tmp_path: Path) -> None:
    with stub_engine.running(tmp_path / "log", "--models", MODEL) as url:
        async with over_http(url, tmp_path / "log") as subject:
            with pytest.raises(EngineFault):
                await subject.engine.answer(chat("!crash"))
            await asyncio.sleep(0.3)  # the kernel closes a dead process's sockets one after the other
            with pytest.raises(EngineBusy):
                await subject.engine.answer(chat("a"))

            assert subject.prompts() == ["!crash"]


@pytest.mark.verify
async def test_suspended_server_causes_faults_and_answers_after_resume(tmp_path: Path) -> None:
    with stub_engine.started(tmp_path / "log", "--models", MODEL) as (url, pid):
        async with over_http(url, tmp_path / "log", seconds=2) as subject:
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(EngineFault, match="no answer"):
                await subject.engine.answer(chat("a"))
            os.kill(pid, signal.SIGCONT)

            assert (await subject.engine.answer(chat("b"))).status == 200
