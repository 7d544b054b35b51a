"""A response that is told as it comes, in several tries."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis

from jobs.inference import admission
from jobs.inference.admission import BLOCK
from jobs.inference.interactive import ENDED_SECONDS, answer_key, streams_key
from jobs.setting_groups import MB
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.interactive_api import running_broker
from workers.engines.port import Answer, Emit, EngineFault, Request
from workers.inference.background_responses import EventPublisher

REDIS = Settings(broker_url="redis://127.0.0.1:9/0")
REQUEST = Request("/v1/responses", {"model": "m", "input": "Hi"}, "r1")


async def _has_room(*_: object) -> bool:
    return True


async def test_attempt_without_final_response_reuses_no_earlier_response() -> None:
    class Breaking:
        tries = 0

        async def stream(self, _request: Request, emit: Emit) -> Answer:
            self.tries += 1
            if self.tries == 1:
                await emit(msgspec.json.encode({"type": "response.completed", "response": {"id": "resp_1"}}))
                raise EngineFault("reset")
            return Answer(200, b"")

    host: Any = SimpleNamespace(engine=Breaking())
    publisher = EventPublisher(host, REDIS, "resp_1", 1)

    for told in ("reset", "without its response"):
        with pytest.raises(EngineFault, match=told):
            await publisher.answer(REQUEST)


async def test_failed_event_write_stops_publishing_in_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[bytes]] = []

    class Trying:
        tries = 0

        async def stream(self, _request: Request, emit: Emit) -> Answer:
            self.tries += 1
            for n in range(3):
                await emit(msgspec.json.encode({"type": "response.output_text.delta", "delta": f"{self.tries}-{n}"}))
                await asyncio.sleep(0)
            raise EngineFault("reset")

    async def write(_self: EventPublisher, _server: Any, events: Sequence[bytes]) -> None:
        written.append([msgspec.json.decode(event)["delta"] for event in events])
        if len(written) == 1:
            raise ConnectionError("unreachable")

    monkeypatch.setattr(EventPublisher, "_write", write)
    monkeypatch.setattr(EventPublisher, "_has_room", _has_room)
    host: Any = SimpleNamespace(engine=Trying())
    publisher = EventPublisher(host, REDIS, "resp_1", 1)

    for _ in range(2):
        with pytest.raises(EngineFault, match="reset"):
            await publisher.answer(REQUEST)

    assert len(written) == 1


async def test_a_server_that_stands_still_holds_up_no_answer_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many:
        async def stream(self, _request: Request, emit: Emit) -> Answer:
            for n in range(1000):
                await emit(msgspec.json.encode({"type": "response.output_text.delta", "delta": str(n)}))
            return Answer(200, b"{}")

    async def write(_self: EventPublisher, _server: Any, _events: Sequence[bytes]) -> None:
        await asyncio.sleep(0.15)

    monkeypatch.setattr(EventPublisher, "_write", write)
    monkeypatch.setattr(EventPublisher, "_has_room", _has_room)
    host: Any = SimpleNamespace(engine=Many())

    async with asyncio.timeout(1.0):  # 16 times as long as one takes would be more
        answer = await EventPublisher(host, REDIS, "resp_1", 1, replace(Timings(), events_patience=0.2)).answer(REQUEST)

    assert answer.body == b"{}"


async def test_missing_redis_falls_back_to_non_streamed_answer() -> None:
    class Whole:
        async def answer(self, request: Request) -> Answer:
            return Answer(200, request.request_id.encode())

    host: Any = SimpleNamespace(engine=Whole())

    assert (await EventPublisher(host, Settings(broker_url="amqp://"), "resp_1", 1).answer(REQUEST)).body == b"r1"


@pytest.mark.parametrize("kind", ["long", "of a project that holds much", "beside a full server"])
async def test_events_stay_within_stream_limits_and_answer_still_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(admission, "MAX_UNREAD_BYTES", MB)

    class Long:
        async def stream(self, _request: Request, emit: Emit) -> Answer:
            for n in range(400):
                await emit(msgspec.json.encode({"type": "response.output_text.delta", "delta": f"{n}".zfill(10_000)}))
                await asyncio.sleep(0)
            return Answer(200, b"{}")

    host: Any = SimpleNamespace(engine=Long())
    with running_broker(tmp_path) as url, redis.Redis.from_url(url) as server:
        config = Settings(streams_url=url, interactive_resumable=1)
        if kind == "of a project that holds much":
            server.xadd(answer_key("resp_0"), {"p": ""})
            server.hset(streams_key("p"), "resp_0", 2 * MB - BLOCK)
        elif kind == "beside a full server":
            server.config_set("maxmemory", MB)
        said = await EventPublisher(host, config, "resp_1", 1).answer(replace(REQUEST, tenant="p"))
        told, ends = server.xlen(answer_key("resp_1")), server.ttl(answer_key("resp_1"))

    most = {"long": MB, "of a project that holds much": BLOCK, "beside a full server": 0}[kind]
    assert said.body == b"{}"
    assert most - 64 * 10_000 - 100_000 < told * 10_000 <= most, "without the last that would come in one round trip"
    assert ends <= ENDED_SECONDS
