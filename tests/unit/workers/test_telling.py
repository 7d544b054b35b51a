"""A response that is told as it comes, in several tries."""

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
