"""Re-ranking by servers behind HTTP, each in its own shape."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tests.support.scripted_server import Handler, engine_of, says, serving
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import EngineBusy, EngineFault, Request, Usage

VLLM = """{"id":"rerank-1","model":"m","usage":{"prompt_tokens":9,"total_tokens":9},"results":
[{"index":1,"document":{"text":"b","multi_modal":null},"relevance_score":0.9},
{"index":0,"document":{"text":"a","multi_modal":null},"relevance_score":0.1}]}"""
COHERE = '{"results":[{"index":0,"relevance_score":0.98}],"id":"x","meta":{"billed_units":{"search_units":1}}}'


class Ranker:
    """A server; `tei` has its path alone, and takes 32 texts at a time."""

    def __init__(self, said: str = "", tei: bool = False) -> None:
        self.said, self.tei, self.url = said, tei, ""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        self.script: Handler | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return web.Response(status=404)
        body = msgspec.json.decode(await request.read())
        self.asked.append((request.path, body))
        if self.script:
            return await self.script(request)
        if request.path != ("/rerank" if self.tei else "/v1/rerank"):
            return web.Response(status=404)
        if self.status != 200:
            return web.Response(status=self.status, text=self.said)
        if not self.tei:
            return web.Response(text=self.said, content_type="application/json")
        assert len(body["texts"]) <= 32
        scores = [{"index": n, "score": int(text) / 100} for n, text in enumerate(body["texts"])]
        return web.json_response(sorted(scores, key=lambda one: -one["score"]))


@pytest.fixture
async def tei() -> AsyncIterator[tuple[Ranker, HttpEngine]]:
    server: Any = Ranker(tei=True)
    async with serving(server), engine_of(Endpoint(server.url, serves={"m": "bge"})) as engine:
        yield server, engine


def request(*documents: Any, **fields: Any) -> Request:
    return Request("/v1/rerank", {"model": "m", "query": "q", "documents": list(documents), **fields}, "req")


@pytest.mark.parametrize(("said", "usage"), [(VLLM, Usage(9)), (COHERE, Usage())], ids=["vllm", "cohere"])
async def test_the_common_shape_is_passed_on(said: str, usage: Usage) -> None:
    server: Any = Ranker(said)
    async with serving(server), engine_of(Endpoint(server.url, serves={"m": "bge"})) as engine:
        answer = await engine.answer(request("a", "b", top_n=2))

    assert msgspec.json.decode(answer.body) == msgspec.json.decode(said)
    assert answer.usage == usage
    path = "/v1/rerank"
    assert server.asked == [(path, {"model": "bge", "query": "q", "documents": ["a", "b"], "top_n": 2})]


async def test_tei_gets_native_request_and_returns_standard_results(tei: tuple[Ranker, HttpEngine]) -> None:
    server, engine = tei
    documents = [str(n * 3 % 70 + 30) for n in range(70)]

    answer = await engine.answer(request(*documents, top_n=3))
    again = await engine.answer(request({"text": "5"}, "50", return_documents=False))

    results = msgspec.json.decode(answer.body)["results"]
    assert [one["relevance_score"] for one in results] == [0.99, 0.98, 0.97]
    assert [one["document"]["text"] for one in results] == [documents[one["index"]] for one in results]
    assert msgspec.json.decode(again.body)["results"] == [
        {"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.05},
    ]  # fmt: skip
    assert [path for path, _ in server.asked] == ["/v1/rerank", *["/rerank"] * 4], "it is known the second time"
    assert server.asked[-1][1] == {"query": "q", "texts": ["5", "50"], "truncate": True}


async def test_tei_request_without_documents_is_refused(tei: tuple[Ranker, HttpEngine]) -> None:
    answer = await tei[1].answer(request())

    assert (answer.status, msgspec.json.decode(answer.body)["error"]["param"]) == (400, "documents")


async def test_tei_that_has_too_much_to_do_is_busy(tei: tuple[Ranker, HttpEngine]) -> None:
    server, engine = tei
    server.status = 503

    with pytest.raises(EngineBusy):
        await engine.answer(request("1"))


async def test_tei_that_leaves_a_text_out_is_at_fault(tei: tuple[Ranker, HttpEngine]) -> None:
    server, engine = tei
    await engine.answer(request("1"))
    server.script = says(200, '[{"index": 0, "score": 0.5}]')

    with pytest.raises(EngineFault):
        await engine.answer(request("1", "2"))


async def test_a_server_that_cannot_rank_says_so() -> None:
    server: Any = Ranker()
    server.script = says(404, "")
    async with serving(server), engine_of(Endpoint(server.url, serves={"m": "m"})) as engine:
        assert (await engine.answer(request("1"))).status == 404


async def test_missing_model_returns_404_without_second_request() -> None:
    server: Any = Ranker('{"error": {"message": "no such model"}}')
    server.status = 404
    async with serving(server), engine_of(Endpoint(server.url, serves={"m": "m"})) as engine:
        answer = await engine.answer(request("1"))

    assert answer.status == 404
    assert len(server.asked) == 1
