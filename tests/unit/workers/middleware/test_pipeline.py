"""All that stands before an engine, together and in the order of a worker."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from jobs.db.engine import Database
from jobs.platform.storage import DiskStorage
from jobs.registry.tables import TunedModel
from jobs.retrieval.searches import FoundChunk, Search
from jobs.settings import Settings
from tests.support import tuned_adapters
from tests.support.scripted_server import CHAT, Server, serving
from tests.unit.workers.middleware.context_window.engines import MODEL, Counting, Nobody
from workers.engines.port import Request
from workers.middleware.file_search.excerpts import ContextBudget
from workers.middleware.pipeline import PipelineDeps, build_pipeline
from workers.middleware.response_cache import ResponseCache
from workers.middleware.schema_checker import SchemaChecker
from workers.middleware.tuned_models import TunedModels
from workers.runtime.adapter_files import AdapterFiles

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CUT = {"strategy": "sliding_window"}
OLD = [{"role": "user", "content": "old " * 60}, {"role": "assistant", "content": "yes " * 60}]
TOOL = {"type": "file_search", "vector_store_ids": ["vs_1"]}
CATS = FoundChunk("file-1", "cats.md", 0.9, "Cats purr. " * 15, {}, {})
FORMAT = {"name": "s", "schema": SCHEMA}


class Layers:
    def __init__(
        self, config: Settings, response_cache: ResponseCache, checker: SchemaChecker, tuned_models: TunedModels
    ) -> None:
        self.response_cache = response_cache
        self.says = ['{"n": "four"}', '{"n": 4}']  # wrong once, and right when it is asked again
        self.engine = Counting(says=lambda _: self.says[min(len(self.engine.asked), len(self.says)) - 1])
        deps = PipelineDeps(
            measure=self.engine.length,
            identity=lambda name: (name, "weights"),
            is_alias=lambda _: False,
            model_router=Nobody(),
            search=self._search,
            context_budgets=lambda _: ContextBudget(10_000),
            response_cache=response_cache,
            tuned_models=tuned_models,
            checker=checker,
            allows_media_urls=self._allows,
        )
        self.all = build_pipeline(self.engine, deps, config)
        self.searches: list[Search] = []

    async def ask(self, url: str, tenant: str = "p", **body: Any) -> Any:
        request = Request(url, {"model": MODEL, "temperature": 0, **body}, "req_1", tenant=tenant)
        answer = await self.all.answer(request)
        self.response_cache.flush()
        return msgspec.json.decode(answer.body) | {"http": answer.status}

    async def _allows(self, project_id: str) -> bool:
        return project_id == "free"

    async def _search(self, request: Request, search: Search) -> list[FoundChunk]:
        self.searches.append(search)
        return [CATS]


@pytest.fixture
async def layers(sqlite: Database, tmp_path: Path) -> AsyncIterator[Layers]:
    response_cache, checker = ResponseCache(sqlite, 1 << 20), SchemaChecker()
    files = AdapterFiles(DiskStorage(tmp_path / "files"), tmp_path / "adapters")
    tuned_models = TunedModels(sqlite, files, serves=lambda _: False, version_of=lambda _: "")
    config = Settings(data_dir=tmp_path, database_url=sqlite.url, media_allow_private=True)
    yield Layers(config, response_cache, checker, tuned_models)
    await checker.close()
    response_cache.close()


async def test_cache_stores_validated_answer_of_truncated_conversation(layers: Layers) -> None:
    body = {
        "messages": [*OLD, {"role": "user", "content": "A number?"}],
        "max_tokens": 10,
        "context": CUT,
        "response_format": {"type": "json_schema", "json_schema": FORMAT},
        "cache": True,
    }

    first = await layers.ask("/v1/chat/completions", **body)
    again = await layers.ask("/v1/chat/completions", **body)

    assert first["choices"][0]["message"]["content"] == '{"n": 4}'
    assert first["context"]["dropped_messages"] == 2
    assert again["cached"] is True
    assert {name: again[name] for name in ("choices", "context")} == {
        name: first[name] for name in ("choices", "context")
    }
    assert len(layers.engine.asked) == 2
    assert not any(request.body.keys() & {"cache", "context"} for request in layers.engine.asked)
    assert "old" not in json.dumps([request.body["messages"] for request in layers.engine.asked])


async def test_answers_with_file_search_are_shortened_checked_and_not_cached(layers: Layers) -> None:
    body = {
        "input": [{"role": "user", "content": "old " * 40}, {"role": "user", "content": "Cats?"}],  # short by itself
        "max_output_tokens": 10,
        "tools": [TOOL],
        "context": CUT,
        "text": {"format": {"type": "json_schema", **FORMAT}},
    }

    refused = await layers.ask("/v1/responses", **body, cache=True)
    answer = await layers.ask("/v1/responses", **body, cache=False)

    assert (refused["http"], refused["error"]["param"]) == (400, "cache")
    assert [item["type"] for item in answer["output"]] == ["file_search_call", "message"]
    assert answer["output"][1]["content"][0]["text"] == '{"n": 4}'
    assert answer["context"]["strategy"] == "sliding_window"
    assert [search.queries for search in layers.searches] == [("Cats?",)]
    asked = [request.body["input"][0]["content"] for request in layers.engine.asked]
    assert all(one.startswith("Excerpts of files:\n[1]\n> cats.md") and one.endswith("\nCats?") for one in asked)
    assert not any(request.body.keys() & {"cache", "context", "tools"} for request in layers.engine.asked)


async def test_a_tuned_model_has_context_strategies_files_schemas_and_the_cache(
    layers: Layers, sqlite: Database, tmp_path: Path
) -> None:
    name, storage = f"ft:{MODEL}:acme::abc", DiskStorage(tmp_path / "files")
    adapter = tuned_adapters.tuned_model(sqlite, storage, name, base=MODEL, project="acme")
    with sqlite.read() as session:
        owner = session.query(TunedModel).one().project_id
    chat = {
        "messages": [*OLD, {"role": "user", "content": "A number?"}],
        "max_tokens": 10,
        "context": CUT,
        "response_format": {"type": "json_schema", "json_schema": FORMAT},
        "cache": True,
    }
    response = {"input": [{"role": "user", "content": "Cats?"}], "max_output_tokens": 10, "tools": [TOOL]}

    first = await layers.ask("/v1/chat/completions", owner, model=name, **chat)
    again = await layers.ask("/v1/chat/completions", owner, model=name, **chat)
    found = await layers.ask("/v1/responses", owner, model=name, **response)

    assert (first["model"], again["model"]) == (name, name)
    assert first["choices"][0]["message"]["content"] == '{"n": 4}'
    assert first["context"]["dropped_messages"] == 2
    assert again["cached"] is True
    assert [item["type"] for item in found["output"]] == ["file_search_call", "message"]
    asked = [(request.body["model"], request.adapter and request.adapter.name) for request in layers.engine.asked]
    assert asked == [(MODEL, adapter)] * 3


async def test_a_prompt_that_is_routed_to_a_tuned_model_is_answered_by_its_adapter(
    layers: Layers, sqlite: Database, tmp_path: Path
) -> None:
    name, storage = f"ft:{MODEL}:acme::abc", DiskStorage(tmp_path / "files")
    adapter = tuned_adapters.tuned_model(sqlite, storage, name, base=MODEL, project="acme")
    with sqlite.read() as session:
        owner = session.query(TunedModel).one().project_id
    layers.engine.limit, layers.says = 150, ["fine"]
    messages = [*OLD, *OLD, {"role": "user", "content": "So?"}]
    context = {"route_long": name, "strategy": "sliding_window"}

    answer = await layers.ask("/v1/chat/completions", owner, messages=messages, max_tokens=10, context=context)

    assert (answer["http"], answer["model"], answer["context"]["routed_to"]) == (200, name, name)
    assert layers.engine.asked[-1].adapter is not None
    assert (layers.engine.asked[-1].adapter.name, layers.engine.asked[-1].body["model"]) == (adapter, MODEL)


async def test_pictures_by_url_reach_the_engine_and_the_cache_as_bytes(layers: Layers) -> None:
    """The same URL with other bytes is another request."""
    pictures = [b"one", b"one", b"two"]

    async def picture(_: web.BaseRequest) -> web.Response:
        return web.Response(body=pictures.pop(0), content_type="image/png")

    async with serving(Server()) as server:
        server.on_list = picture
        parts = [{"type": "image_url", "image_url": {"url": f"{server.url}/a.png"}}]
        body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "cache": True}
        layers.says = ["A dog."]
        told = [await layers.ask(CHAT, tenant="free", **body) for _ in range(3)]

    assert [answer["http"] for answer in told] == [200] * 3
    seen = [asked.body["messages"][0]["content"][0]["image_url"]["url"] for asked in layers.engine.asked]
    assert seen == [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (b"one", b"two")]
