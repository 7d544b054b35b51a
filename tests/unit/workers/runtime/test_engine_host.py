"""The engine host, before its engines are there."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace

import pytest

from jobs.platform.limiters import SharedExclusiveLock
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from workers.engines.port import EngineDead
from workers.runtime.engine_host import EngineHost


class SlowEngine(FakeEngine):
    """Comes up when it is told to."""

    loaded = threading.Event()

    async def start(self) -> None:
        self.loaded.wait(10)
        await super().start()


@pytest.fixture
def engine() -> SlowEngine:
    SlowEngine.loaded = threading.Event()
    return SlowEngine()


@pytest.fixture
def host(engine: SlowEngine) -> Iterator[EngineHost]:
    host = EngineHost(engine, lambda: None)
    thread = threading.Thread(target=host.start)
    thread.start()
    yield host
    engine.loaded.set()
    thread.join(30)
    host.close()


def test_request_waits_while_engines_load(host: EngineHost, engine: SlowEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(host.await_start, threading.Event())
        early = wait([asking], timeout=0.3).done
        engine.loaded.set()

        assert asking.result(30)
    assert not early


def test_stop_ends_the_wait_for_engines(host: EngineHost) -> None:
    stop = threading.Event()
    stop.set()

    assert not host.await_start(stop)


def test_an_engine_that_cannot_be_closed_holds_up_no_end(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(FakeEngine):
        async def close(self) -> None:
            raise EngineDead("It does not answer.")

    host = EngineHost(Stubborn(), lambda: None)
    host.start()

    host.close()

    assert host.loop.is_closed()
    assert "engine_close_failed" in caplog.messages


def test_close_lets_running_tasks_clean_up() -> None:
    host = EngineHost(FakeEngine(), lambda: None)
    host.start()
    began, ended = threading.Event(), threading.Event()

    async def forever() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    host.call(forever())
    assert began.wait(30)

    host.close()

    assert ended.is_set()
    assert host.loop.is_closed()


def test_task_that_ignores_cancellation_does_not_delay_the_end() -> None:
    host = EngineHost(FakeEngine(), lambda: None, timings=replace(Timings(), engine_loop_end=0.05))
    host.start()
    began, over = threading.Event(), threading.Event()

    async def stubborn() -> None:
        began.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    host.call(stubborn())
    assert began.wait(30)

    host.close(5.0)
    over.set()

    assert host.loop.is_closed()


class Others(SharedExclusiveLock):
    """The other processes at the same server: they let us begin when they are asked for the n-th time."""

    def __init__(self, let: int = 0) -> None:
        self.let = let
        self.heard: list[str] = []

    def try_shared(self) -> bool:
        self.let -= 1
        return self.let < 0

    async def acquire_exclusive(self) -> None:
        self.heard.append("isolated")

    def release(self) -> None:
        self.heard.append("left")


@pytest.fixture
def shared() -> Iterator[EngineHost]:
    """Its engines are shared with other processes."""
    host = EngineHost(FakeEngine(), lambda: None, Others())
    host.start()
    yield host
    host.close()


def test_request_waits_for_shared_lock_and_last_request_releases_lock(shared: EngineHost) -> None:
    others = Others(let=3)
    shared._others = others

    async def two() -> list[list[str]]:
        heard = []
        async with shared.shared_turn():
            async with shared.shared_turn():
                heard.append(list(others.heard))
            heard.append(list(others.heard))
        return [*heard, others.heard]

    assert shared.call(two()).result(30) == [[], [], ["left"]]
    assert others.let == -2, "both have asked, the first of them until it was let in"


def test_isolated_request_excludes_requests_of_all_engines(shared: EngineHost) -> None:
    others = Others()
    shared._others = others

    async def ask(order: list[str]) -> None:
        async with shared.shared_turn():
            order.append("among others")

    async def isolated() -> list[str]:
        order: list[str] = []
        async with shared.isolated_turn():
            task = asyncio.create_task(ask(order))
            for _ in range(5):
                await asyncio.sleep(0)
            order += [*others.heard, "alone is over"]
        await task
        return order

    assert shared.call(isolated()).result(30) == ["isolated", "alone is over", "among others"]
    assert others.heard == ["isolated", "left", "left"]


def test_first_lock_of_shared_server_stays_in_use(host: EngineHost) -> None:
    first, second = Others(), Others()

    host.share(first)
    host.share(second)

    assert host._others is first
