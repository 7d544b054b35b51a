"""Responses that search files: one excerpt is found, whatever is asked, and the answer cites it."""

from typing import Any

import msgspec

from jobs.retrieval.searches import FoundChunk, Search
from tests.support.fake_engine import FakeEngine, prompt_of, reply
from workers.engines.port import Answer, Engine, Request
from workers.middleware.file_search.excerpts import ContextBudget
from workers.middleware.file_search.middleware import FileSearchMiddleware

TOOL: Any = {"type": "file_search", "vector_store_ids": ["vs_1"]}
RESULTS: Any = ["file_search_call.results"]
TEXT = "Cats purr when they are content."


def citing(request: Request) -> Answer:
    """Return the answer that a `FakeEngine` gives."""
    answer = reply(request.url, request.body, prompt_of(request.url, request.body))
    body = msgspec.json.decode(answer.body)
    body["output"][0]["content"][0]["text"] = "They purr [1]."
    return Answer(200, msgspec.json.encode(body), answer.usage)


def searching(engine: FakeEngine) -> Engine:
    return FileSearchMiddleware(engine, _search, lambda _: ContextBudget(10_000))


async def _search(request: Request, search: Search) -> list[FoundChunk]:
    return [FoundChunk("file-1", "cats.md", 0.9, TEXT, None, {})]


def found(response: Any) -> list[str] | None:
    """Return the texts that a response shows for its search; None where it shows none."""
    [call] = [item for item in response.output if item.type == "file_search_call"]
    return None if call.results is None else [result.text for result in call.results]
