"""A worker process from outside: what it says when it cannot work, and how its consumer is told to stop listening."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from jobs.evals import runs
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.ledger import kinds
from jobs.queues import Queue, largest_share
from jobs.settings import Settings
from workers import app as celery_app
from workers import engine_process as worker
from workers.__main__ import process_count
from workers.runtime.context import Pool
from workers.tasks import CPU_POOL, EVALUATE_POOL

ROOT = Path(__file__).parents[3]
ENGINE_WITHOUT_A_DEVICE = """
import sys, threading
from types import SimpleNamespace
from workers import engine_process as worker
from tests.support.fake_engine import FakeEngine
from workers.runtime.engine_host import EngineHost

class Broken(FakeEngine):
    async def start(self):
        raise OSError("no device")

stop = threading.Event()
if sys.argv[1] == "stopping":
    stop.set()
engine_health = SimpleNamespace(begin=lambda: None, excuse=lambda: print("nobody's fault", flush=True))
worker._bring_up(SimpleNamespace(stop=stop), EngineHost(Broken(), lambda: None), None, None, None, engine_health)
print("goes on")
"""


class FakeConsumer:
    """The part of the interactive consumer that is needed."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    def listen(self, wanted: bool) -> None:
        self.told.append(wanted)


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("workers", "tpu"), "unknown pool 'tpu': one of cpu, evaluate, gpu, embed, finetune, tuned, io"),
        (("workers.flower",), "Flower needs a password: set FLOWER_BASIC_AUTH"),
    ],
)
def test_a_process_that_may_not_start_says_why(
    arguments: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)

    ended = _python("-m", *arguments)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(told)


def test_worker_exits_for_restart_if_engine_does_not_start() -> None:
    ended = _python("-c", ENGINE_WITHOUT_A_DEVICE, "wanted")

    assert (ended.returncode, ended.stdout) == (70, "nobody's fault\n")
    assert "engine_did_not_start" in ended.stderr
    assert "no device" in ended.stderr


def test_stopping_worker_ignores_engine_start_failure() -> None:
    ended = _python("-c", ENGINE_WITHOUT_A_DEVICE, "stopping")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "goes on\n", "")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    made = celery_app.build(Settings(broker_url="memory://"))
    monkeypatch.setattr(celery_app, "current_app", made)
    return made


@pytest.fixture
def heard(app: Celery) -> Iterator[Any]:
    """Return the calls to the consumer of this process, one for each message."""
    told: list[tuple[str, str]] = []
    handlers = {
        name: lambda _state, queue, name=name, **_: told.append((name, queue))
        for name in ("add_consumer", "cancel_consumer")
    }
    with app.connection_for_read() as connection:
        node = app.control.mailbox.Node(
            celery_app._node("gpu"), channel=connection.default_channel, handlers=handlers, state=SimpleNamespace()
        )
        with node.listen():

            def hear() -> tuple[str, str]:
                connection.drain_events(timeout=30)
                return told.pop()

            yield hear


def test_a_paused_worker_tells_its_consumer_to_leave_its_queues_and_resumed_to_come_back(heard: Any) -> None:
    consumer = FakeConsumer()

    assert worker._listen(consumer, "gpu", ("gpu.generate",), False)  # type: ignore[arg-type]
    assert heard() == ("cancel_consumer", "gpu.generate")
    assert consumer.told == [False]

    assert worker._listen(consumer, "gpu", ("gpu.generate",), True)  # type: ignore[arg-type]
    assert heard() == ("add_consumer", "gpu.generate")
    assert consumer.told == [False, True]


def test_listen_returns_false_while_broker_is_unavailable(app: Celery) -> None:
    app.conf.update(broker_url="redis://127.0.0.1:1/0")

    assert not worker._listen(FakeConsumer(), "gpu", ("gpu.generate",), False)  # type: ignore[arg-type]


def test_invalid_models_file_is_logged_once_and_worker_waits(caplog: pytest.LogCaptureFixture) -> None:
    right, stop = object(), SimpleNamespace(wait=lambda _seconds: looks.append(len(looks)))
    looks: list[int] = []

    def now() -> object:
        if len(looks) < 3:
            raise ModelsFileError("models: no engine")
        return right

    context: Any = SimpleNamespace(models=SimpleNamespace(now=now), stop=stop)

    assert worker._await_models(context) is right
    assert [record.message for record in caplog.records] == ["models_file.rejected"]
    assert len(looks) == 3


class Announced:
    """A worker's own row, and how often it was written anew."""

    def __init__(self) -> None:
        self.standing = SimpleNamespace(models=(), state="starting", restarts=0)
        self.db = SimpleNamespace(retrying=lambda *_: self.written.append(self.standing.models))
        self.heartbeat = SimpleNamespace(announce=lambda: None)
        self.stop = None
        self.written: list[tuple[str, ...]] = []


def test_worker_announces_models_only_on_change() -> None:
    context: Any = Announced()
    registry = Registry({}, {}, Path("models.yaml"))
    engine: Any = SimpleNamespace(reachable_models=frozenset(), discovered_models=(), registry=registry)

    shown = worker._announce(context, engine, "gpu.generate", None)
    assert (context.standing.state, context.written) == ("ready", [()]), "it is there, though it has none"
    for there in ({"b", "a"}, {"b", "a"}, {"b"}, {"b"}):
        engine.reachable_models = frozenset(there)
        shown = worker._announce(context, engine, "gpu.generate", shown)

    assert context.written == [(), ("a", "b"), ("b",)]

    engine.discovered_models = {"b": True}  # an external server has it now, and no other
    worker._announce(context, engine, "gpu.generate", shown)
    assert context.written[-2:] == [("b",), ("b",)]


@pytest.mark.parametrize(("error", "ended", "told"), [("OSError('no loop')", 70, True), ("None", 0, False)])
@pytest.mark.verify
def test_worker_exits_for_restart_only_after_interactive_consumer_error(error: str, ended: int, told: bool) -> None:
    script = f"""
from concurrent.futures import Future
from types import SimpleNamespace
from workers import engine_process as worker
engine_health = SimpleNamespace(excuse=lambda: print("nobody's fault", flush=True))
serving = Future()
serving.set_exception({error}) if {error} else serving.set_result(None)
worker._end_with_consumer(engine_health, serving)
"""

    process = _python("-c", script)

    assert process.returncode == ended
    assert ("interactive_ended" in process.stderr) is told
    assert ("no loop" in process.stderr) is told
    assert ("nobody's fault" in process.stdout) is told


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("pool", [CPU_POOL, EVALUATE_POOL])
def test_project_share_of_pool_covers_half_of_cores(pool: Pool, cores: int) -> None:
    count = process_count(pool, cores)

    assert largest_share(count) == max(2, cores // 2)
    assert count - largest_share(count) >= len(pool.queues), "each queue has a process left"


def test_evaluations_have_processes_of_their_own() -> None:
    assert not set(EVALUATE_POOL.queues) & set(CPU_POOL.queues)
    assert kinds.of(runs.NAME).run_queue in EVALUATE_POOL.queues
    assert Queue.PLAN in CPU_POOL.queues
