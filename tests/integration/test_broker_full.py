"""A key cannot fill the broker: while it tries, another project chats, and messages of the dispatcher are taken."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from openai import OpenAI

from jobs.inference import admission
from jobs.inference.admission import SHARE
from jobs.queues import Queue
from jobs.setting_groups import MB
from jobs.settings import Settings
from tests.support.interactive_api import MODEL, Shop, running_broker, shops
from tests.support.servers import Valkey
from tests.support.system import eventually
from workers.dispatcher.publisher import CeleryPublisher
from workers.engines.port import Answer, Emit, Request

_CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
_ENDLESS = {**_CHAT, "messages": [{"role": "user", "content": "endless"}], "stream": True}


@pytest.fixture(params=["the broker itself", "a server beside RabbitMQ"])
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "the broker itself":
        with running_broker(tmp_path) as url:
            yield url
        return
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    yield valkey.url
    valkey.close()


@pytest.fixture
def make_shop(
    tmp_path: Path, sqlite_url: str, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Shop]]:
    """Make shops over a server of some MB; limits in bytes are the same part of it as by default."""
    beside = {} if server_url.startswith("unix") else {"broker_url": "amqp://guest@127.0.0.1:1//"}
    with redis.Redis.from_url(server_url) as server, shops(tmp_path, sqlite_url, server_url) as make:

        def small(megabytes: int) -> Shop:
            server.config_set("maxmemory", megabytes * MB)
            monkeypatch.setattr(admission, "MAX_WAITING_BYTES", 192 * MB * megabytes // 512)
            monkeypatch.setattr(admission, "MAX_UNREAD_BYTES", max(MB, 8 * MB * megabytes // 512))
            return make(**beside)

        yield small


def _endless(shop: Shop) -> Callable[[Request, Emit], Any]:
    """Make an engine that streams 4 KB at a time without an end when it is asked to."""
    stream = shop.engine.stream

    async def endlessly(request: Request, emit: Emit) -> Answer:
        if "endless" not in json.dumps(request.body):
            return await stream(request, emit)
        while True:
            await emit(b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % (b"x" * 4096))
            await asyncio.sleep(0.001)

    return endlessly


def _hang_up(shop: Shop, number: int) -> tuple[int, str]:
    """Begin a stream that goes on for ten minutes, and leave it."""
    headers = {"Authorization": f"Bearer {shop.client.api_key}", "X-Nightmill-Resume": "600"}
    with httpx2.stream("POST", f"{shop.url}/chat/completions", json=_ENDLESS, headers=headers, timeout=60) as said:
        if said.status_code == 200:
            next(said.iter_lines())
            return 200, ""
        return said.status_code, json.loads(said.read())["error"]["code"]


def _answered(stranger: OpenAI) -> bool:
    streamed = stranger.chat.completions.create(**_CHAT, stream=True)
    return bool(stranger.chat.completions.create(**_CHAT).choices and len(list(streamed)) > 2)


def _publish(shop: Shop) -> None:
    """Publish as the dispatcher does; it raises where the broker refuses."""
    if shop.redis_url.startswith("unix"):
        publisher = CeleryPublisher(Settings(broker_url=shop.redis_url.replace("unix:", "redis+socket:")))
        with publisher._app:
            for n in range(200):
                publisher.publish("run", Queue.GENERATE, ["batch_1", n])


def test_abandoned_streams_of_key_do_not_block_other_projects(
    make_shop: Callable[[int], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop(64)
    stranger = shop.stranger()
    monkeypatch.setattr(shop.engine, "stream", _endless(shop))
    with shop.open(unread_bytes=MB), redis.Redis.from_url(shop.redis_url) as server:
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda n: _hang_up(shop, n), range(16)))
            eventually(lambda: shop.host._in_flight == 0, 60, "every engine that was left is free")
        more = [_hang_up(shop, n) for n in range(3)]
        eventually(lambda: shop.host._in_flight == 0, 60, "those too")
        used = server.info("memory")["used_memory"]

        assert _answered(stranger)
        _publish(shop)
        assert httpx2.get(f"{shop.url.removesuffix('/v1')}/statusz").json()["status"] == "ready"

    assert used < SHARE * 64 * MB
    assert [status for status, _ in said].count(200) >= 8
    assert {code for status, code in said + more if status != 200} == {"rate_limit_exceeded"}


def test_large_prompts_of_key_block_neither_running_nor_new_answers(
    make_shop: Callable[[int], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop(24)
    prompt = {**_CHAT, "messages": [{"role": "user", "content": "x" * MB}]}
    stranger, go_on = shop.stranger(), asyncio.Event()
    stream, answer = shop.engine.stream, shop.engine.answer

    async def held(request: Request, emit: Emit) -> Answer:
        await emit(b'{"choices":[{"index":0,"delta":{"content":"first"}}]}')
        await go_on.wait()
        return await stream(request, emit)

    async def held_too(request: Request) -> Answer:
        await go_on.wait()
        return await answer(request)

    monkeypatch.setattr(shop.engine, "stream", held)
    monkeypatch.setattr(shop.engine, "answer", held_too)
    with (
        shop.open(concurrent=4, waiting=1),
        redis.Redis.from_url(shop.redis_url) as server,
        ThreadPoolExecutor(40) as pool,
    ):
        streams = [stranger.chat.completions.create(**_CHAT, stream=True) for _ in range(4)]
        for one in streams:
            next(iter(one))
        prompts = [pool.submit(shop.post, "chat/completions", prompt) for _ in range(30)]
        eventually(lambda: sum(one.done() for one in prompts) == 25, 60, "all but what may wait is refused")
        used = server.info("memory")["used_memory"]
        _publish(shop)
        waits = pool.submit(stranger.chat.completions.create, **_CHAT)
        shop.host.call(_set(go_on)).result(30)
        rest = [len(list(one)) for one in streams]
        chat = waits.result(30)
        codes = [one.result(30).status_code for one in prompts]

    assert all(count > 2 for count in rest)
    assert chat.choices
    assert used < SHARE * 24 * MB
    assert codes.count(200) == 5
    assert set(codes) <= {200, 429, 503}


async def _set(event: asyncio.Event) -> None:
    event.set()
