"""A project has a share of the web process: threads, and bytes of JSON bodies. Others always get in."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session

from api import shares
from api.deps import CallContext
from api.http.idempotency import Lease, Once
from api.inference import conversations, interactive, targets
from api.shares import ProjectShare, RequestShare
from jobs.security.tables import Project
from jobs.timings import Timings
from tests.support.web import make_key

BODY = {"metadata": {"a": "x"}, "items": [{"role": "user", "content": "x" * 40_000}]}


class Gate:
    """Holds requests for conversations of one project, each in its thread, until it opens."""

    def __init__(self) -> None:
        self.project: str | None = None
        self.held = 0
        self.most = 0
        self.open = threading.Event()
        self._entered = threading.Semaphore(0)
        self._lock = threading.Lock()

    def pass_through(self, project_id: str) -> None:
        if project_id != self.project:
            return
        with self._lock:
            self.held += 1
            self.most = max(self.most, self.held)
        self._entered.release()
        self.open.wait(30)
        with self._lock:
            self.held -= 1

    async def holds(self, count: int) -> None:
        """Wait until `count` more requests are held."""
        for _ in range(count):
            assert await asyncio.to_thread(self._entered.acquire, True, 30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, row, begin = Gate(), conversations.get_conversation, conversations.begin

    def held_row(session: Session, call: CallContext, *args: Any, **options: Any) -> Any:
        gate.pass_through(call.project_id)
        return row(session, call, *args, **options)

    def held_begin(call: CallContext, *args: Any) -> Any:
        gate.pass_through(call.project_id)
        return begin(call, *args)

    monkeypatch.setattr(conversations, "get_conversation", held_row)
    monkeypatch.setattr(conversations, "begin", held_begin)
    yield gate
    gate.open.set()


Work = Callable[[httpx2.AsyncClient, httpx2.AsyncClient], Coroutine[Any, Any, None]]


def _run(app: FastAPI, gate: Gate, work: Work) -> None:
    """Run `work` with a client of the project that the gate holds, and one of another project."""

    async def both() -> None:
        keys = [make_key(app), make_key(app, "another")]
        clients = [
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app), base_url="http://test", headers={"Authorization": f"Bearer {key}"}
            )
            for key in keys
        ]
        with app.state.services.db.read() as session:
            gate.project = session.scalar(select(Project.id).where(Project.name == "default"))
        async with clients[0], clients[1], asyncio.timeout(60):
            try:
                await work(*clients)
            finally:
                gate.open.set()

    asyncio.run(both())


def _get(client: httpx2.AsyncClient) -> "asyncio.Task[httpx2.Response]":
    return asyncio.create_task(client.get("/v1/conversations/conv_1"))


def test_project_threads_are_limited_and_other_project_is_served(make_app: Callable[..., FastAPI], gate: Gate) -> None:

    async def work(busy: httpx2.AsyncClient, other: httpx2.AsyncClient) -> None:
        held = [_get(busy) for _ in range(2)]
        await gate.holds(2)

        refused = [await busy.get("/v1/conversations/conv_1"), await busy.get("/v1/models")]
        refused.append(await busy.post("/v1/embeddings", json={"model": "m", "input": "x"}))
        served = await other.get("/v1/models")
        gate.open.set()
        answered = [await one for one in held]

        for answer in refused:
            error = answer.json()["error"]
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert served.status_code == 200
        assert [answer.status_code for answer in answered] == [404, 404]
        assert (await busy.get("/v1/models")).status_code == 200

    _run(make_app(project_threads=2, timings=replace(Timings(), thread_patience=0.05)), gate, work)


def test_request_waiting_for_thread_is_served_after_thread_release(
    make_app: Callable[..., FastAPI], gate: Gate
) -> None:
    async def work(busy: httpx2.AsyncClient, _: httpx2.AsyncClient) -> None:
        held = [_get(busy) for _ in range(40)]
        await gate.holds(3)
        gate.open.set()

        assert {(await one).status_code for one in held} == {404}
        assert gate.most == 3

    _run(make_app(project_threads=3), gate, work)


@pytest.mark.parametrize("chunked", [False, True])
def test_project_body_bytes_are_limited_and_other_project_is_served(
    make_app: Callable[..., FastAPI], gate: Gate, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (text[:20_000], text[20_000:]):
            yield piece

    request = httpx2.Request("POST", "http://test/", json=BODY)
    text = request.content
    options: dict[str, Any] = {"headers": {"Content-Type": "application/json"}}

    def post(client: httpx2.AsyncClient) -> Coroutine[Any, Any, httpx2.Response]:
        return client.post("/v1/conversations", content=pieces() if chunked else text, **options)

    async def work(busy: httpx2.AsyncClient, other: httpx2.AsyncClient) -> None:
        held = asyncio.create_task(post(busy))
        await gate.holds(1)

        refused, small, served = await post(busy), await busy.get("/v1/models"), await post(other)
        gate.open.set()
        answered, again = await held, await post(busy)

        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [one.status_code for one in (small, served, answered, again)] == [200] * 4

    _run(make_app(project_body_bytes=65_536, body_max_bytes=65_536), gate, work)


def test_a_body_of_the_largest_size_is_always_accepted(make_app: Callable[..., FastAPI], gate: Gate) -> None:
    async def work(_: httpx2.AsyncClient, other: httpx2.AsyncClient) -> None:
        assert (await other.post("/v1/conversations", json=BODY)).status_code == 200

    _run(make_app(project_body_bytes=1024), gate, work)


def test_continued_conversation_counts_as_request_body(make_app: Callable[..., FastAPI], gate: Gate) -> None:
    async def work(busy: httpx2.AsyncClient, _: httpx2.AsyncClient) -> None:
        project, gate.project = gate.project, None
        talk = (await busy.post("/v1/conversations", json=BODY)).json()["id"]
        body = {"model": "m", "input": "x", "conversation": talk}
        gate.project = project
        held = asyncio.create_task(busy.post("/v1/conversations", json=BODY))
        await gate.holds(1)
        gate.project = None

        refused = await busy.post("/v1/responses", json=body)
        gate.open.set()
        await held
        again = await busy.post("/v1/responses", json=body)

        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert again.json()["error"]["code"] == "model_not_found"

    _run(make_app(project_body_bytes=65_536, body_max_bytes=65_536), gate, work)


@pytest.fixture
def no_thread() -> Iterator[None]:
    """Send a request of a project all of whose threads are in use."""
    token = shares.current.set(RequestShare(ProjectShare(0, 0)))
    yield
    shares.current.reset(token)


class Request:
    async def is_disconnected(self) -> bool:
        return False


@pytest.mark.usefixtures("no_thread")
def test_long_work_of_a_project_delays_no_check_during_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    services = SimpleNamespace(stopping=threading.Event(), timings=replace(Timings(), key_look=0.0))
    call: Any = SimpleNamespace(services=services)
    monkeypatch.setattr(interactive, "_check_key", lambda _: checked.append("key"))
    monkeypatch.setattr(targets, "_is_served", lambda *_: checked.append("served"))
    request: Any = Request()

    async def look() -> None:
        async with asyncio.timeout(30):
            await interactive._client_check(call, request, float("inf"))()
            await targets.worker_check(call, "generate", "m")()

    asyncio.run(look())

    assert checked == ["key", "served"]


@pytest.mark.usefixtures("no_thread")
def test_long_work_of_a_project_delays_no_heartbeat_of_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeats: list[str] = []
    monkeypatch.setattr(Lease, "_heartbeat", lambda lease: heartbeats.append(lease.owner))
    config: Any = SimpleNamespace(heartbeat_seconds=0.0)
    db: Any = None
    lease = Lease(Once(db, config, ("p", "POST /v1/files", "key"), "POST /v1/files"), owner="own_1")

    async def heartbeat() -> None:
        async with asyncio.timeout(30):
            await lease.heartbeat()

    asyncio.run(heartbeat())

    assert heartbeats == ["own_1"]
