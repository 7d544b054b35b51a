"""A server in this process that answers as a test tells it to, and an HTTP engine over such servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from tests.support.system import free_port
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Answer, Request

CHAT = "/v1/chat/completions"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Server:
    """A server that answers each POST with what `script` says, or with an empty answer, and counts them."""

    def __init__(self, name: str = "m") -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.heard: list[Mapping[str, str]] = []
        self.script: Handler | None = None
        self.listing: web.Response | None = None
        self.on_list: Handler | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET" and self.on_list:
            return await self.on_list(request)
        if request.method == "GET":
            return self.listing or web.json_response({"object": "list", "data": [{"id": self.name}]})
        self.heard.append(request.headers)
        self.asked.append(msgspec.json.decode(await request.read()))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.script(request) if self.script else good()
        finally:
            self.at_once -= 1


def good(**more: Any) -> web.Response:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return web.json_response({"id": "c", "choices": [], "usage": usage, **more})


def says(status: int, body: bytes | str = b"{}", **headers: str) -> Handler:
    data = body.encode() if isinstance(body, str) else body

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status, body=data, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


@contextlib.asynccontextmanager
async def serving(server: Server, port: int = 0) -> AsyncIterator[Server]:
    runner = web.ServerRunner(web.Server(server.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def engine_of(*endpoints: Endpoint, **options: Any) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(endpoints, **{"timeout": 5.0, **options})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def request(model: str = "m", prompt: str = "hello", priority: int = 0) -> Request:
    return Request(CHAT, {"model": model, "messages": [{"role": "user", "content": prompt}]}, "req_1", priority)


def unused_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  what is awaited has no event of its own
            await asyncio.sleep(0.01)


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = msgspec.json.decode(answer.body)["error"]
    return error
