"""The engine host, before its engines are there."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import pytest

from workers.engines.fake import FakeEngine
from workers.engines.port import EngineDead
from workers.host import EngineHost


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
    thread.join(10)
    host.close()


def test_who_asks_for_the_engines_waits_while_they_load(host: EngineHost, engine: SlowEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(host.await_start, threading.Event())
        early = wait([asking], timeout=0.3).done
        engine.loaded.set()

        assert asking.result(10)
    assert not early


def test_who_is_told_to_stop_waits_no_longer(host: EngineHost) -> None:
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


def test_what_still_runs_when_it_ends_closes_what_it_has_open() -> None:
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
    assert began.wait(10)

    host.close()

    assert ended.is_set()
    assert host.loop.is_closed()


def test_what_will_not_be_cancelled_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.host._LAST_SECONDS", 0.05)
    host = EngineHost(FakeEngine(), lambda: None)
    host.start()
    began, over = threading.Event(), threading.Event()

    async def stubborn() -> None:
        began.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    host.call(stubborn())
    assert began.wait(10)

    host.close(5.0)
    over.set()

    assert host.loop.is_closed()
