"""How long an input is: what is counted of it, and who cannot count."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from jobs.inference import responses
from jobs.inference.interactive import QueuedRequest
from jobs.requests.endpoints import RESPONSES
from jobs.retrieval.searches import FoundChunk, Search
from tests.unit.workers.middleware.context_window.engines import MODEL
from tests.unit.workers.middleware.context_window.engines import Counting as Words
from workers.engines.port import Answer, EngineBusy, Length, Request, refusal
from workers.inference.token_counting import TokenCounter
from workers.middleware.file_search.excerpts import ContextBudget

CATS = FoundChunk("file-1", "cats.md", 0.9, "Cats purr.", {}, {})
TOOL = {"type": "file_search", "vector_store_ids": ["vs_1"]}


class Host:
    """Count the requests that share the engine."""

    def __init__(self) -> None:
        self.inside = 0

    @asynccontextmanager
    async def shared_turn(self) -> AsyncIterator[None]:
        self.inside += 1
        yield
        self.inside -= 1


class Harness:
    """Ask a worker whose engine counts words."""

    def __init__(self, *, counts: bool = True) -> None:
        self.engine, self.host = Words(counts=counts), Host()
        self.measured: list[tuple[Request, int]] = []
        self.found: list[FoundChunk] | None = [CATS]
        self._counting = TokenCounter(self.host, self._measure, self._search, lambda _: ContextBudget(10_000))  # type: ignore[arg-type]

    async def ask(self, **body: Any) -> Any:
        raw = msgspec.json.encode({"model": MODEL, **body})
        answer = await self._counting.answer(QueuedRequest("req_1", responses.COUNT_URL, raw, "p", 0.0), 0)
        return msgspec.json.decode(answer.body) | {"http": answer.status}

    async def _measure(self, request: Request) -> Length | None:
        self.measured.append((request, self.host.inside))
        return await self.engine.length(request)

    async def _search(self, request: Request, search: Search) -> list[FoundChunk]:
        if self.found is None:
            raise EngineBusy("Nobody searches now.")
        return self.found


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    assert made.engine.asked == [], "nothing is generated"


async def test_an_input_is_counted_as_the_model_is_shown_it(harness: Harness) -> None:
    items = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]

    said = await harness.ask(input=items, instructions="be brief")

    [(request, inside)] = harness.measured
    assert said == {"object": "response.input_tokens", "input_tokens": 2 + 7 + 0, "http": 200}
    assert (request.url, request.tenant, inside) == (RESPONSES, "p", 1)


async def test_truncation_and_cache_fields_do_not_reach_engine(harness: Harness) -> None:
    item = {"role": "user", "content": "one", "priority": 3}

    await harness.ask(input=[item], truncation="auto", context={"strategy": "rotate"}, cache=True)

    assert harness.measured[0][0].body == {"model": MODEL, "input": [{"role": "user", "content": "one"}]}


async def test_more_than_the_context_holds_is_counted_too(harness: Harness) -> None:
    said = await harness.ask(input="word " * 5000)

    assert (said["http"], said["input_tokens"] > 5000) == (200, True)


@pytest.mark.parametrize("refuse", [False, True])
async def test_file_search_content_counts_as_input_tokens(harness: Harness, refuse: bool) -> None:
    bare = await harness.ask(input="Cats?")
    grounded = await harness.ask(input="Cats?", tools=[{**TOOL, "refuse": refuse}])
    harness.found = []
    nothing = await harness.ask(input="Cats?", tools=[{**TOOL, "refuse": refuse}])

    assert grounded["input_tokens"] > nothing["input_tokens"] > bare["input_tokens"]
    assert "tools" not in harness.measured[1][0].body


async def test_token_count_is_busy_while_search_is_unavailable(harness: Harness) -> None:
    harness.found = None

    with pytest.raises(EngineBusy):
        await harness.ask(input="Cats?", tools=[TOOL])


async def test_an_estimate_is_no_answer() -> None:
    said = await Harness(counts=False).ask(input="one two")

    assert (said["http"], said["error"]["param"], said["error"]["code"]) == (400, "model", "unsupported_value")
    assert "does not count" in said["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_tool"),
        ({"foo": 1}, "foo", "unknown_parameter"),
        ({"personality": "friendly", "foo": None}, "input", "invalid_value"),
        ({}, "input", "invalid_value"),
    ],
)
async def test_uncountable_input_is_refused_with_reason(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], param: str, code: str
) -> None:
    async def none(_: Request) -> None:
        return None

    monkeypatch.setattr(harness.engine, "length", none)

    said = await harness.ask(input="x", **body)

    assert (said["http"], said["error"]["param"], said["error"]["code"]) == (400, param, code)


async def test_the_input_of_a_tuned_model_is_counted_by_its_base() -> None:
    harness = Harness()

    async def resolve(request: Request) -> Request | Answer:
        if request.body["model"] == "ft:gone":
            return refusal(404, "It was deleted.", code="model_deleted")
        return replace(request, body={**request.body, "model": MODEL})

    harness._counting._resolve = resolve

    counted, unreachable = (
        await harness.ask(model="ft:m:acme::abc", input="one two"),
        await harness.ask(model="ft:gone", input="x"),
    )

    assert counted["http"] == 200
    assert [request.body["model"] for request, _ in harness.measured] == [MODEL]
    assert (unreachable["http"], unreachable["error"]["code"]) == (404, "model_deleted")
