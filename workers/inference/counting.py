"""How many tokens the input of a response has, as the engine of its model counts them.

    question ─▶ files searched, where it asks for that ─▶ measured ─▶ {"input_tokens"}        nothing is generated

It is counted as it is sent, before anything of it would be cut. An engine whose tokenizer is elsewhere has only an
estimate, which is no answer.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from jobs.inference.context_options import FIELD as CONTEXT
from jobs.inference.interactive import Question
from jobs.requests.endpoints import RESPONSES
from workers.engines.caps import objection
from workers.engines.port import Answer, Emit, Request, refusal
from workers.middleware.caching.answer_cache import FIELD as CACHE
from workers.middleware.compaction import Unpacked
from workers.middleware.context_window.context_engine import Measure
from workers.middleware.context_window.history import History
from workers.middleware.file_search.file_search_engine import Grounded, Rooms, Searcher
from workers.middleware.file_search.tool import is_search
from workers.runtime.engine_host import EngineHost

_NOT_SHOWN = frozenset({CACHE, CONTEXT, "truncation"})  # to the model


class Counting:
    """Answers on the engine host's loop."""

    def __init__(self, host: EngineHost, measure: Measure, search: Searcher, rooms: Rooms) -> None:
        self._host = host
        self._engine = Grounded(Unpacked(_Counter(measure)), search, rooms)

    async def answer(self, question: Question, priority: int) -> Answer:
        """Raises what engines raise."""
        body = _shown(msgspec.json.decode(question.body))
        async with self._host.company():
            return await self._engine.answer(
                Request(RESPONSES, body, question.id, priority, question.tenant, kept=False)
            )


class _Counter:
    """An engine that says how long a prompt is, and no more."""

    models = ()

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def answer(self, request: Request) -> Answer:
        length = await self._measure(request)
        if length is None:
            message = "The model cannot put this input into tokens."
            return objection(request.url, request.body) or refusal(400, message, param="input", code="invalid_value")
        if not length.exact:
            message = f"The engine of the model `{str(request.body.get('model'))[:64]}` does not count tokens."
            return refusal(400, message, param="model", code="unsupported_value")
        return Answer(200, msgspec.json.encode({"object": "response.input_tokens", "input_tokens": length.tokens}))

    async def stream(self, request: Request, emit: Emit) -> Answer:  # noqa: ARG002
        return await self.answer(request)


def _shown(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only says what to leave out of it, or when not to answer."""
    shown = {name: value for name, value in body.items() if name not in _NOT_SHOWN}
    if isinstance(shown.get("tools"), list):
        shown["tools"] = [{**tool, "refuse": False} if is_search(tool) else tool for tool in shown["tools"]]
    history = History.of(RESPONSES, shown)
    return history.body if history else shown
