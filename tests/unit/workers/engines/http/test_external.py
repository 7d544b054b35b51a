"""Prompts of a project that does not allow external servers never reach one: every way leads through the engines.

`outside` and `inside` are servers in this process that count what they are asked.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from jobs.db.engine import Database
from jobs.fleet.models_file import Registry
from jobs.security import keys
from jobs.security.tables import Project
from tests.support.inline_deployment import chat_line, jsonl, running
from tests.support.scripted_server import Server, engine_of, error_of, good, request, says, serving, until
from tests.unit.workers.middleware.context_window.engines import LIMIT, Nobody, prompt_tokens
from workers.engine_process import ProjectPermission
from workers.engines.build_engines import build
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Answer, Length, Request, Unserved
from workers.engines.router import Router
from workers.middleware.context_window import ContextWindow

FREE, STRICT = "proj_free", "proj_strict"
REFUSED = (403, "external_model_not_allowed")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "secret"}]},
    "/v1/completions": {"prompt": "secret"},
    "/v1/responses": {"input": "secret"},
    "/v1/embeddings": {"input": ["secret"], "truncate": True},
    "/v1/rerank": {"query": "secret", "documents": ["a", "b"]},
}


async def only_free(project_id: str) -> bool:
    return project_id == FREE


def ask(model: str = "m", project: str = STRICT) -> Request:
    return replace(request(model), tenant=project)


def told(answer: Answer) -> tuple[int, str]:
    return answer.status, error_of(answer)["code"]


async def ignore(_: bytes) -> None: ...


def wild(server: Server) -> Server:
    """Have no list of models."""
    server.on_list = says(404)
    return server


@pytest.fixture
async def inside() -> AsyncIterator[Server]:
    async with serving(Server()) as running:
        yield running


@pytest.fixture
async def outside() -> AsyncIterator[Server]:
    async with serving(Server()) as running:
        yield running


def external(server: Server, **facts: Any) -> Endpoint:
    return Endpoint(server.url, external=True, **facts)


# What a server's list of models says.


@pytest.mark.parametrize("status", [401, 402, 403, 429, 302, 307, 400, 200])
async def test_a_server_that_does_not_show_its_list_is_sent_no_prompts(
    outside: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    outside.on_list = says(status, "<html>", Location="http://127.0.0.1:9/")
    async with engine_of(Endpoint(outside.url)) as engine:
        engine.endpoints[0].circuit.trip()
        engine.endpoints[0].circuit.probe()
        await engine._open_client.list_models(engine.endpoints[0])

        assert engine.models == ()
        assert engine.endpoints[0].circuit.is_closed
        with pytest.raises(Unserved):
            await engine.answer(ask(project=FREE))
        outside.on_list = None
        await engine._open_client.list_models(engine.endpoints[0])
        assert engine.models == ("m",)

    assert outside.asked == []
    assert [record.message for record in caplog.records] == ["engine.models_not_listed"]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_that_has_no_list_takes_any_name(inside: Server, status: int) -> None:
    inside.on_list = says(status)
    async with engine_of(Endpoint(inside.url)) as engine:
        assert engine.models == ("*",)
        assert (await engine.answer(ask("whatever"))).status == 200


async def test_unauthorized_listing_preserves_known_models(inside: Server) -> None:
    async with engine_of(Endpoint(inside.url)) as engine:
        inside.on_list = says(401)
        await engine._open_client.list_models(engine.endpoints[0])

        assert engine.models == ("m",)


async def test_a_server_of_the_models_file_comes_back_without_a_list(
    inside: Server, caplog: pytest.LogCaptureFixture
) -> None:
    inside.on_list = says(401)
    async with engine_of(Endpoint(inside.url, serves={"m": "m"})) as engine:
        engine.endpoints[0].circuit.trip()
        await until(lambda: engine.endpoints[0].circuit.is_closed)

        assert (await engine.answer(ask())).status == 200
    assert "engine.models_not_listed" not in caplog.text


# Which server is asked.


@pytest.mark.parametrize("project", [FREE, STRICT])
@pytest.mark.parametrize("serves", [None, {"m": "m"}], ids=["listed", "configured"])
async def test_wildcard_server_gets_no_request_for_model_of_another_server(
    inside: Server, outside: Server, serves: dict[str, str] | None, project: str
) -> None:
    endpoints = Endpoint(inside.url, serves=serves), external(wild(outside))
    async with engine_of(*endpoints, allows_external=only_free) as engine:
        answers = await asyncio.gather(*(engine.answer(ask(project=project)) for _ in range(8)))

    assert {answer.status for answer in answers} == {200}
    assert (len(inside.asked), len(outside.asked)) == (8, 0)


@pytest.mark.parametrize("url", BODIES)
@pytest.mark.parametrize("takes_any", [True, False])
async def test_external_only_model_is_refused_without_permission(outside: Server, url: str, takes_any: bool) -> None:
    asked = Request(url, {"model": "m", **BODIES[url]}, "r", tenant=STRICT)
    async with engine_of(external(wild(outside) if takes_any else outside), allows_external=only_free) as engine:
        refused = [await engine.answer(asked), await engine.stream(asked, ignore)]
        before = len(outside.asked)
        await engine.answer(replace(asked, tenant=FREE))

    assert [told(answer) for answer in refused] == [REFUSED] * 2
    assert (before, len(outside.asked)) == (0, 1)


async def test_an_engine_that_knows_no_permissions_asks_no_external_server(outside: Server) -> None:
    async with engine_of(external(outside)) as engine:
        assert told(await engine.answer(ask(project=FREE))) == REFUSED


async def test_of_internal_and_external_servers_such_a_project_gets_the_internal_ones(
    inside: Server, outside: Server
) -> None:
    async with engine_of(Endpoint(inside.url), external(outside), allows_external=only_free) as engine:
        assert engine.discovered_models == {"m": False}
        await asyncio.gather(*(engine.answer(ask()) for _ in range(10)))
        assert (len(inside.asked), len(outside.asked)) == (10, 0)

        engine.endpoints[0].circuit.trip()
        with pytest.raises(Exception, match="takes requests now"):
            await engine.answer(ask())
        await engine.answer(ask(project=FREE))

    assert (len(inside.asked), len(outside.asked)) == (10, 1)


async def test_internal_only_request_waits_without_blocking_external_requests(inside: Server, outside: Server) -> None:
    gates = {server.url: asyncio.Event() for server in (inside, outside)}

    def gated(server: Server) -> Any:
        async def answer(_: web.BaseRequest) -> web.Response:
            await gates[server.url].wait()
            return good()

        return answer

    inside.script, outside.script = gated(inside), gated(outside)
    endpoints = Endpoint(inside.url, concurrency=1), external(outside, concurrency=1)
    async with engine_of(*endpoints, allows_external=only_free) as engine:
        projects = [FREE, FREE, STRICT, FREE]
        tasks = []
        for project in projects:
            tasks.append(asyncio.create_task(engine.answer(ask(project=project))))
            await asyncio.sleep(0)
        await until(lambda: inside.at_once == outside.at_once == 1)
        gates[outside.url].set()
        await until(lambda: len(outside.asked) == 2)
        assert not tasks[2].done()
        gates[inside.url].set()
        answers = await asyncio.gather(*tasks)

    assert {answer.status for answer in answers} == {200}
    assert (len(inside.asked), len(outside.asked)) == (2, 2)


async def test_while_an_internal_server_has_not_shown_its_models_nothing_is_refused_for_good(outside: Server) -> None:
    away = Endpoint("http://127.0.0.1:9")
    async with engine_of(away, external(outside), allows_external=only_free) as engine:
        with pytest.raises(Unserved):
            await engine.answer(ask())

    assert outside.asked == []


async def test_a_permission_that_ends_while_a_request_waits_in_line_counts(outside: Server) -> None:
    gate = asyncio.Event()
    allowed = True

    async def gated(_: web.BaseRequest) -> web.Response:
        await gate.wait()
        return good()

    async def allows(_: str) -> bool:
        return allowed

    outside.script = gated
    async with engine_of(external(outside, concurrency=1), allows_external=allows) as engine:
        first = asyncio.create_task(engine.answer(ask()))
        await until(lambda: len(outside.asked) == 1)
        second = asyncio.create_task(engine.answer(ask()))
        await until(lambda: bool(engine.endpoints[0].slots.waiting))
        allowed = False
        gate.set()
        with pytest.raises(Exception, match="does not allow external endpoints"):
            await second

        assert (await first).status == 200
        assert told(await engine.answer(ask())) == REFUSED
    assert len(outside.asked) == 1


# How a worker is built, and what stands before its engines.


def test_the_models_file_says_which_servers_are_external(tmp_path: Path) -> None:
    from jobs.settings import Settings

    (tmp_path / "models.yaml").write_text(
        """
models:
  near: {source: {urls: ["http://10.0.0.7"]}, engine: http}
  also: {source: {urls: ["http://10.0.0.7"], internal: false}, engine: http}
  far: {source: {urls: ["https://api.example.com"]}, engine: http}
  ours: {source: {urls: ["https://api.example.com"], internal: true}, engine: http}
  both: {source: {urls: ["http://10.0.0.7", "https://api.example.com"]}, engine: http}
"""
    )
    config = Settings(data_dir=tmp_path, engine_urls=("http://0.0.0.0:1", "http://10.0.0.8"))
    (engine,) = build(config, Registry.read(tmp_path / "models.yaml"), "gpu.generate", only_free).engines.running

    assert isinstance(engine, HttpEngine)
    assert [(tuple(one.serves or ()), one.external) for one in engine.endpoints] == [
        (("near", "both"), False),
        (("also",), True),
        (("far", "both"), True),
        (("ours",), False),
        ((), True),
        ((), False),
    ]


@pytest.mark.parametrize(
    ("model", "context"),
    [
        ("far", {"strategy": "summarize", "summary_tokens": 16}),
        ("far", {"strategy": "sliding_window"}),
        ("m", {"route_long": "far", "strategy": "sliding_window"}),
    ],
)
async def test_context_strategies_send_no_forbidden_prompt_to_external_server(
    inside: Server, outside: Server, tmp_path: Path, model: str, context: dict[str, Any]
) -> None:
    """`Nobody.route` answers None: the model is of this worker's queue, whatever the database says of it."""
    (tmp_path / "models.yaml").write_text("models: {}")
    outside.name = "far"
    outside.script = short
    async with engine_of(Endpoint(inside.url), external(outside), allows_external=only_free) as http:
        router = Router([http], Registry.read(tmp_path / "models.yaml"), only_free)

        async def measure(request: Request) -> Length:
            return Length(prompt_tokens(request), LIMIT)

        def long(project: str) -> Request:
            messages = [{"role": "user", "content": f"{n} " * 20} for n in range(10)]
            body = {"model": model, "messages": messages, "max_tokens": 10, "context": context}
            return replace(ask(project=project), body=body)

        stack = ContextWindow(router, measure, Nobody())
        refused = await stack.answer(long(STRICT))
        before = len(outside.asked)
        answered = await stack.answer(long(FREE))

    assert (refused.status, answered.status) == (403, 200)
    assert (before, bool(outside.asked)) == (0, True)


async def short(_: web.BaseRequest) -> web.Response:
    return good(choices=[{"message": {"role": "assistant", "content": "short"}, "finish_reason": "stop"}])


async def test_batch_lines_without_external_permission_fail_individually(sqlite: Database, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {}")
    async with serving(Server("fake-model")) as outside:
        http = HttpEngine(
            [external(outside)], timeout=5.0, allows_external=ProjectPermission(sqlite, Project.allow_external).allows
        )
        router = Router([http], Registry.read(tmp_path / "models.yaml"))

        def batch() -> list[Any]:
            with running(sqlite, tmp_path, router) as inline:
                (job,) = inline.drain(inline.submit(jsonl([chat_line(f"r{n}", "secret") for n in range(6)])))
                inline.wait_until_idle()
                return [*inline.results(job)]

        good_lines, failed = await asyncio.to_thread(batch)
        before = len(outside.asked)

    assert (good_lines, before) == ([], 0)
    assert [line["response"]["status_code"] for line in failed] == [403] * 6


async def test_lines_of_a_project_with_the_permission_are_answered(sqlite: Database, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {}")
    with sqlite.write() as session:
        keys.ensure_project(session, "default").allow_external = True
    async with serving(Server("fake-model")) as outside:
        http = HttpEngine(
            [external(outside)], timeout=5.0, allows_external=ProjectPermission(sqlite, Project.allow_external).allows
        )
        router = Router([http], Registry.read(tmp_path / "models.yaml"))

        def batch() -> list[Any]:
            with running(sqlite, tmp_path, router) as inline:
                (job,) = inline.drain(inline.submit(jsonl([chat_line(f"r{n}", "hello") for n in range(6)])))
                inline.wait_until_idle()
                return [*inline.results(job)]

        good_lines, failed = await asyncio.to_thread(batch)

    assert (len(good_lines), failed) == (6, [])
    assert 1 <= len(outside.asked) <= 6  # lines that ask the same are asked once
