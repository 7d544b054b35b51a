"""Test that the consumer's loop wakes after every task that ends, and that a lost broker is looked for often."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from jobs.settings import Settings
from workers import app
from workers.runtime.celery_overrides import Consumer, TaskPool


class Loop:
    """Hears what it is to call."""

    def __init__(self, told: list[str]) -> None:
        self.told = told
        self.called = threading.Event()

    def call_soon(self, _callback: object) -> None:
        self.told.append("woken")
        self.called.set()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Return the real event loop, with a silent socket; its timer lets it sleep for two seconds."""
    before, (silent, other) = get_event_loop(), socket.socketpair()
    hub = Hub()
    set_event_loop(hub)
    with silent, other:
        hub.add_reader(silent, lambda: None)
        hub.call_later(60, lambda: None)
        yield hub
        hub.close()
    set_event_loop(before)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def loop(told: list[str]) -> Iterator[Loop]:
    before = get_event_loop()
    loop = Loop(told)
    set_event_loop(loop)  # type: ignore[arg-type]
    yield loop
    set_event_loop(before)


def test_the_loop_wakes_once_a_task_has_been_reckoned_with(loop: Loop, told: list[str]) -> None:
    pool = TaskPool(limit=1)

    pool.apply_async(lambda: told.append("ran"), (), {}, callback=lambda _: told.append("counted"))

    assert loop.called.wait(30)
    assert told == ["ran", "counted", "woken"]
    pool.stop()


@pytest.mark.verify  # the loop would wake by itself after two seconds
def test_a_task_that_ends_wakes_the_loop_that_sleeps(hub: Hub) -> None:
    pool, began = TaskPool(limit=1), time.monotonic()

    pool.apply_async(threading.Event().wait, (0.2,), {}, callback=lambda _: None)
    hub.run_once()

    assert 0.15 < time.monotonic() - began < 1.5
    pool.stop()


def test_a_pool_without_a_loop_works() -> None:
    assert get_event_loop() is None
    pool = TaskPool(limit=1)
    ran = threading.Event()

    pool.apply_async(ran.set, (), {}, callback=lambda _: None).wait(5)

    assert ran.is_set()
    pool.stop()


@pytest.mark.parametrize(("threads", "pool"), [(True, "workers.runtime.celery_overrides:TaskPool"), (False, "prefork")])
def test_workers_with_threads_have_it(threads: bool, pool: str) -> None:
    celery = app.build(Settings(broker_url="memory://"), threads=threads)

    assert celery.conf.worker_pool == pool


_AWAY_SECONDS = 60


class _Over(Exception):
    """End a wait for a broker that has been away for long enough."""


def test_a_broker_that_is_back_is_found_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, looked = list[float](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) > _AWAY_SECONDS:
            raise _Over

    monkeypatch.setattr("kombu.utils.functional.sleep", sleep)
    monkeypatch.setattr("celery.worker.consumer.consumer.error", lambda *_: looked.append(sum(slept)))
    built = app.build(Settings(data_dir=tmp_path))
    consumer = Consumer.__new__(Consumer)
    consumer.app, consumer.first_connection_attempt, consumer.broker_connection_retry_attempt = built, True, 0
    with built.connection_for_read() as connection, pytest.raises(_Over):
        consumer.ensure_connected(connection)

    gaps = [later - earlier for earlier, later in itertools.pairwise(looked)]
    assert len(gaps) > 10
    assert max(gaps) <= 4, gaps
    assert built.conf.worker_consumer == "workers.runtime.celery_overrides:Consumer"
