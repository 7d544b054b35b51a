"""A worker's process freezes the objects that it keeps, so that the collector does not scan them again."""

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from jobs.platform import memory
from tests.support.fake_engine import FakeEngine
from workers import engine_process as worker
from workers.runtime.context import WorkerStatus
from workers.runtime.engine_host import EngineHost
from workers.tasks import Runtime, signals


class Cycle:
    """Refers to itself: only the collector can free it."""

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_frozen_objects_are_excluded_from_garbage_collection() -> None:
    memory.freeze()

    assert gc.get_freeze_count() > 1000
    assert len(gc.get_objects()) < 1000


def test_unreachable_frozen_object_is_freed_by_the_next_freeze() -> None:
    cycle = Cycle()
    memory.freeze()
    gone = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert gone() is not None

    memory.freeze()

    assert gone() is None


def test_worker_freezes_objects_at_celery_start_engine_start_and_rebuild(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settled: list[int] = []
    monkeypatch.setattr(memory, "freeze", lambda: settled.append(host.generation))
    monkeypatch.setattr(worker, "_keep_announced", lambda *_: None)
    context = SimpleNamespace(standing=WorkerStatus())
    host = EngineHost(FakeEngine(), lambda: worker._note_restart(context))  # type: ignore[arg-type]

    signals.worker_ready.send(None)
    assert settled == [0]
    engine_health = SimpleNamespace(begin=lambda: None)
    worker._bring_up(context, host, host.engine, Idle(), lambda: None, engine_health)  # type: ignore[arg-type]
    assert settled == [0, 0]
    host.call(host._rebuild()).result(30)
    host.close()

    assert settled == [0, 0, 1]
    assert context.standing.restarts == 1


class Idle:
    """A consumer without requests."""

    queue = "gpu.generate"

    async def serve(self) -> None:
        return


def test_stopping_process_hands_over_interactive_requests_first() -> None:
    calls: list[str] = []
    context = SimpleNamespace(heartbeat=SimpleNamespace(stop_all=lambda: calls.append("stop_all")))

    Runtime(context, hand_over=lambda: calls.append("hand_over")).stop()  # type: ignore[arg-type]

    assert calls == ["hand_over", "stop_all"]
