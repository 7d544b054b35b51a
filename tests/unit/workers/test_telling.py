"""A response that is told as it comes, in several tries."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from workers.engines.port import Answer, Emit, EngineFault, Request
from workers.telling import Telling

REQUEST = Request("/v1/responses", {"model": "m", "input": "Hi"}, "r1")


async def test_a_try_that_ends_without_its_response_has_not_the_one_of_the_try_before() -> None:
    class Breaking:
        tries = 0

        async def stream(self, _request: Request, emit: Emit) -> Answer:
            self.tries += 1
            if self.tries == 1:
                await emit(msgspec.json.encode({"type": "response.completed", "response": {"id": "resp_1"}}))
                raise EngineFault("reset")
            return Answer(200, b"")

    host: Any = SimpleNamespace(engine=Breaking())
    telling = Telling(host, "redis://127.0.0.1:9/0", "resp_1", 1)

    for told in ("reset", "without its response"):
        with pytest.raises(EngineFault, match=told):
            await telling.ask(REQUEST)


async def test_what_one_try_could_not_tell_the_next_does_not_tell_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[bytes]] = []

    class Trying:
        tries = 0

        async def stream(self, _request: Request, emit: Emit) -> Answer:
            self.tries += 1
            for n in range(3):
                await emit(msgspec.json.encode({"type": "response.output_text.delta", "delta": f"{self.tries}-{n}"}))
                await asyncio.sleep(0)
            raise EngineFault("reset")

    async def write(_self: Telling, _server: Any, events: Sequence[bytes]) -> None:
        written.append([msgspec.json.decode(event)["delta"] for event in events])
        if len(written) == 1:
            raise ConnectionError("gone")

    monkeypatch.setattr(Telling, "_write", write)
    host: Any = SimpleNamespace(engine=Trying())
    telling = Telling(host, "redis://127.0.0.1:9/0", "resp_1", 1)

    for _ in range(2):
        with pytest.raises(EngineFault, match="reset"):
            await telling.ask(REQUEST)

    assert len(written) == 1


async def test_a_server_that_stands_still_holds_up_no_answer_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many:
        async def stream(self, _request: Request, emit: Emit) -> Answer:
            for n in range(1000):
                await emit(msgspec.json.encode({"type": "response.output_text.delta", "delta": str(n)}))
            return Answer(200, b"{}")

    async def write(_self: Telling, _server: Any, _events: Sequence[bytes]) -> None:
        await asyncio.sleep(0.15)

    monkeypatch.setattr(Telling, "_write", write)
    monkeypatch.setattr("workers.telling._PATIENCE", 0.2)
    host: Any = SimpleNamespace(engine=Many())

    async with asyncio.timeout(1.0):  # 16 times as long as one takes would be more
        answer = await Telling(host, "redis://127.0.0.1:9/0", "resp_1", 1).ask(REQUEST)

    assert answer.body == b"{}"


async def test_without_a_server_the_answer_is_asked_for_whole() -> None:
    class Whole:
        async def answer(self, request: Request) -> Answer:
            return Answer(200, request.request_id.encode())

    host: Any = SimpleNamespace(engine=Whole())

    assert (await Telling(host, "", "resp_1", 1).ask(REQUEST)).body == b"r1"
