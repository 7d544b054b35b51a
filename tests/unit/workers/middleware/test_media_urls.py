"""Pictures and files that a request names by URL: who has them fetched, what an engine gets, and what is refused."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from jobs.db.engine import Database
from jobs.fleet.models_file import Registry
from jobs.requests.endpoints import CHAT, RESPONSES
from jobs.security import keys
from jobs.security.tables import Project
from jobs.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import chat_line, jsonl, running
from tests.support.scripted_server import Server, serving
from workers.engine_process import ProjectPermission
from workers.engines.port import Answer, Request
from workers.engines.router import Router
from workers.middleware import media_urls
from workers.middleware.media_urls import MAX_URLS, MediaUrlMiddleware

DATA = "data:image/png;base64,iVBORw0KGgo="
PICTURE, PAPER = b"a picture", b"%PDF"


def chat(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"model": "fake-model", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}


def response(**part: Any) -> dict[str, Any]:
    return {"model": "fake-model", "input": [{"role": "user", "content": [part]}]}


def encoded(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    name = request.path.rpartition("/")[2]
    if name == "hang.png":
        await asyncio.sleep(30)
    if name == "round.png":
        return web.Response(status=302, headers={"Location": "/round.png"})
    if name == "gone.png":
        return web.Response(status=404)
    kind = {"a.png": "image/png", "b.png": "application/octet-stream", "p.pdf": "application/pdf"}.get(
        name, "text/html"
    )
    body = b"x" * 5000 if name == "large.png" else PAPER if name == "p.pdf" else PICTURE
    return web.Response(body=body, content_type="image/png" if name == "large.png" else kind)


class Engine(FakeEngine):
    """An engine behind the middleware and a router, that remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(("fake-model",))
        self.sent: list[dict[str, Any]] = []

    async def answer(self, request: Request) -> Answer:
        self.sent.append(request.body)
        return await super().answer(request)


async def _allowed(project_id: str) -> bool:
    return project_id == "free"


def around(engine: FakeEngine, seconds: float = 5.0, **settings: Any) -> MediaUrlMiddleware:
    config = Settings(**{"media_allow_private": True, "media_max_bytes": 4096, **settings})
    return MediaUrlMiddleware(Router([engine], Registry({}, {}, Path("models.yaml"))), _allowed, config, seconds)


async def ask(middleware: MediaUrlMiddleware, url: str, body: dict[str, Any], tenant: str = "free") -> Any:
    answer = await middleware.answer(Request(url, body, "req_1", tenant=tenant))
    error = msgspec.json.decode(answer.body).get("error") or {}
    return answer.status, error.get("code"), error.get("param"), error.get("message")


async def test_an_engine_gets_the_bytes_and_the_request_keeps_its_urls() -> None:
    engine = Engine()
    await engine.start()
    async with serving(Server()) as server:
        server.on_list = _answer
        at, middleware = server.url, around(engine)
        bodies: list[tuple[str, dict[str, Any]]] = [
            (CHAT, chat(f"{at}/a.png", DATA, f"{at}/b.png?x=1")),
            (RESPONSES, response(type="input_image", image_url=f"{at}/a.png")),
            (RESPONSES, response(type="input_file", file_url=f"{at}/some%20papers/p.pdf")),
            (RESPONSES, response(type="input_file", file_url=f"{at}/p.pdf", filename="mine.pdf")),
        ]
        before = msgspec.json.encode(bodies)
        for url, body in bodies:
            assert (await ask(middleware, url, body))[0] == 200
        events: list[bytes] = []

        async def emit(event: bytes) -> None:
            events.append(event)

        await middleware.stream(Request(CHAT, bodies[0][1], "req_1", tenant="free"), emit)

    parts = [(sent.get("messages") or sent["input"])[0]["content"] for sent in engine.sent]
    assert [part["image_url"]["url"] for part in parts[0][1:]] == [
        encoded("image/png", PICTURE),
        DATA,
        encoded("image/png", PICTURE),  # its name says that it is one
    ]
    assert parts[1] == [{"type": "input_image", "image_url": encoded("image/png", PICTURE)}]
    file = {"type": "input_file", "file_data": encoded("application/pdf", PAPER)}
    assert parts[2:4] == [[{**file, "filename": "p.pdf"}], [{**file, "filename": "mine.pdf"}]]
    assert parts[4] == parts[0]
    assert events
    assert msgspec.json.encode(bodies) == before


async def test_refused_project_gets_same_error_for_pictures_and_files() -> None:
    engine = Engine()
    async with serving(Server()) as server:
        server.on_list = _answer
        for url, body, key in (
            (CHAT, chat(f"{server.url}/a.png"), "image_url"),
            (RESPONSES, response(type="input_image", image_url=f"{server.url}/a.png"), "image_url"),
            (RESPONSES, response(type="input_file", file_url=f"{server.url}/p.pdf"), "file_url"),
        ):
            status, code, param, message = await ask(around(engine), url, body, tenant="strict")
            assert (status, code, param) == (400, "media_url_not_allowed", "messages" if url == CHAT else "input")
            assert message.startswith(f"{key}: only data: URLs are taken. Pictures and files are fetched")
    assert engine.sent == []


@pytest.mark.parametrize(
    ("names", "settings", "code", "told"),
    [
        (["a.png", "gone.png"], {}, "media_url_failed", "the server answered 404"),
        (["page"], {}, "media_url_failed", "it is no picture, but text/html"),
        (["round.png"], {}, "media_url_failed", "it leads on too often"),
        (["hang.png"], {"seconds": 0.3}, "media_url_failed", "time"),
        (["large.png"], {}, "media_too_large", "4096 bytes in all"),
        (["a.png", "a.png"], {"media_max_bytes": 1024}, None, ""),
        (["a.png"] * (MAX_URLS + 1), {}, "too_many_media_urls", f"at most {MAX_URLS}"),
        (["a.png"], {"media_allow_private": False}, "invalid_url", "must start with https"),
    ],
)
async def test_failed_fetch_is_error_of_request(
    names: list[str], settings: dict[str, Any], code: str | None, told: str
) -> None:
    engine = Engine()
    await engine.start()
    async with serving(Server()) as server:
        server.on_list = _answer
        middleware = around(engine, **settings)
        found = await ask(middleware, CHAT, chat(*(f"{server.url}/{name}" for name in names)))

    assert found[:2] == ((400, code) if code else (200, None))
    assert told in (found[3] or "")
    assert len(engine.sent) == (0 if code else 1)
    if code not in (None, "too_many_media_urls"):
        assert found[2] == f"messages[0].content[{len(names)}].image_url"


async def test_a_private_address_is_not_fetched_behind_a_public_name() -> None:
    status, code, _, message = await ask(
        around(Engine(), media_allow_private=False), CHAT, chat("https://169.254.169.254/latest")
    )

    assert (status, code) == (400, "invalid_url")
    assert "public address" in message


async def test_a_project_holds_only_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_urls, "PROJECT_BYTES", 4096)
    waiting, release = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        waiting.set()
        await release.wait()
        return await _answer(request)

    engine = Engine()
    await engine.start()
    async with serving(Server()) as server:
        server.on_list = slow
        middleware = around(engine)
        first, second = (asyncio.create_task(ask(middleware, CHAT, chat(f"{server.url}/a.png"))) for _ in range(2))
        await waiting.wait()
        await asyncio.sleep(0.1)
        assert [limit.waiting for limit in middleware._projects.values()] == [4096]
        release.set()
        assert [(await task)[0] for task in (first, second)] == [200, 200]
    assert middleware._projects == {}
    assert middleware._process.used == 0


async def test_lines_of_a_batch_have_their_pictures_fetched(sqlite: Database, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {}")
    engine = Engine()
    allows = ProjectPermission(sqlite, Project.allow_media_urls).allows
    config = Settings(data_dir=tmp_path, media_allow_private=True)
    middleware = MediaUrlMiddleware(Router([engine], Registry.read(tmp_path / "models.yaml")), allows, config)
    with sqlite.write() as session:
        keys.ensure_project(session, "default").allow_media_urls = True
    async with serving(Server()) as server:
        server.on_list = _answer
        lines = [
            chat_line(name, "x", messages=chat(f"{server.url}/{name}")["messages"]) for name in ("a.png", "gone.png")
        ]

        def batch() -> tuple[list[Any], list[Any]]:
            with running(sqlite, tmp_path, middleware) as inline:
                (job,) = inline.drain(inline.submit(jsonl(lines)))
                inline.wait_until_idle()
                good, failed = inline.results(job)
                return good, failed

        good, failed = await asyncio.to_thread(batch)

    assert [line["custom_id"] for line in good] == ["a.png"]
    [line] = failed
    assert line["response"]["body"]["error"]["code"] == "media_url_failed"
    assert engine.sent[0]["messages"][0]["content"][1]["image_url"]["url"] == encoded("image/png", PICTURE)
