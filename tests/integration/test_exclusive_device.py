"""A training that has its device to itself: the engine is closed before it and opened after it, whatever is killed."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.finetuning import jobs
from jobs.finetuning.tables import FinetuneCheckpoint, FinetuneStep
from jobs.fleet.tables import Worker
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform import processes
from jobs.queues import Queue
from tests.integration import test_finetuning
from tests.integration.test_finetuning import FAKE, Site, assert_whole, freed, trainer_of, worker_process
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import chat_line, jsonl
from workers.runtime.exclusive_device import ExclusiveDevice

module, site = test_finetuning.module, test_finetuning.site  # fixtures


@pytest.fixture(autouse=True)
def _exclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_FINETUNE_EXCLUSIVE_DEVICE", "true")
    monkeypatch.setenv("FAKE_TRAINER", '{"seconds": 0.05}')


@pytest.fixture
def db(sqlite: Database) -> Database:
    return sqlite


@contextmanager
def yielding(site: Site) -> Iterator[list[bool]]:
    """Let the worker with the engine look for trainings; yield what it has its consumers do: listen, or not."""
    listens: list[bool] = []
    soon = replace(site.inline.gpu.timings, heartbeat_look=0.05)
    device = ExclusiveDevice(replace(site.inline.gpu, timings=soon), site.inline.host, listens.append)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            device.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield listens
    finally:
        ended.set()
        thread.join(30)
        assert not thread.is_alive()


def engine_of(site: Site) -> FakeEngine:
    assert isinstance(site.inline.engine, FakeEngine)
    return site.inline.engine


def never_together(job_id: str, is_open: Callable[[], bool]) -> None:
    """Assert that no trainer lives while the engine is open."""
    before = trainer_of(job_id)
    opened = is_open()
    assert not (opened and before is not None and trainer_of(job_id) == before)


def test_a_batch_in_progress_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    inline, engine = site.inline, engine_of(site)
    engine._delay = 0.3
    lines = jsonl([chat_line(f"line-{n}", f"say {n}") for n in range(48)])
    with yielding(site) as listens:
        batch_id = inline.submit(lines)
        inline.until(lambda: inline.host._in_flight > 0)
        job_id = site.submit(monkeypatch)
        waits: set[str | None] = set()

        def ended() -> bool:
            never_together(job_id, lambda: engine._alive)
            waits.add(inline.job(job_id).waiting_for)
            return inline.job(job_id).state == JobState.SUCCEEDED

        inline.until(ended, 60)
        [job, batch] = inline.drain(job_id, batch_id, timeout=60)

    assert_whole(site, job)
    assert "device" in waits
    assert (batch.state, batch.completed, batch.failed) == (JobState.SUCCEEDED, 48, 0)
    answers, _ = inline.results(batch)
    assert {answer["custom_id"] for answer in answers} == {f"line-{n}" for n in range(48)}
    assert engine.starts == 2
    assert listens == [False, True]


def test_engine_reopens_after_training_is_paused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with yielding(site):
        job_id = site.submit(monkeypatch)
        site.inline.until(lambda: site.count(FinetuneStep, job_id) > 0)
        assert not engine_of(site)._alive
        with site.inline.db.write() as session:
            jobs.pause(session, session.get_one(Job, job_id), actor="test")
        site.inline.until(lambda: freed(site, job_id))
        site.inline.until(lambda: engine_of(site)._alive)
        with site.inline.db.write() as session:
            jobs.resume(session, session.get_one(Job, job_id), actor="test")
        [job] = site.inline.drain(job_id, timeout=60)

    assert_whole(site, job)


@pytest.mark.verify
def test_engine_reopens_after_training_worker_is_killed(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while it waits for the device, and while it trains."""
    job_id = site.submit(monkeypatch)
    site.inline.elsewhere = lambda _task, queue, _arguments: queue == Queue.FINETUNE
    site.inline.until(lambda: site.inline.job(job_id).state == JobState.RUNNING)

    waiting = worker_process(site, job_id, FAKE)
    site.inline.until(lambda: site.inline.job(job_id).waiting_for == "device", 60)
    kill(waiting)
    site.inline.until(lambda: freed(site, job_id))
    assert engine_of(site).starts == 1
    with yielding(site):
        trains = worker_process(site, job_id, FAKE)
        site.inline.until(lambda: site.count(FinetuneCheckpoint, job_id) > 0, 60)
        assert not engine_of(site)._alive
        kill(trains)
        site.inline.until(lambda: engine_of(site)._alive)
        assert freed(site, job_id)
        last = worker_process(site, job_id, FAKE)
        [job] = site.inline.drain(job_id, timeout=60)
        kill(last)

    assert_whole(site, job)
    assert engine_of(site).starts == 3


@pytest.mark.soak
@pytest.mark.parametrize("fatal", ["starting:1", "yielding:1", "closed:1", "starting:2"])
def test_an_engines_worker_that_is_killed_at_any_step_holds_up_no_training(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    fatal: str,
) -> None:
    site.inline.gpu.standing.state = "closed"  # the workers of this test are others
    site.inline.gpu.heartbeat.announce()
    arguments = [str(site.inline.config.data_dir), site.inline.db.url]
    command = [sys.executable, "-m", "tests.support.engine_worker", *arguments]
    first = subprocess.Popen([*command, fatal])
    site.inline.until(lambda: first.poll() is not None or "ready" in states(site), 60)
    job_id = site.submit(monkeypatch)
    site.inline.until(lambda: first.poll() is not None or site.inline.job(job_id).state == JobState.SUCCEEDED, 60)
    second = subprocess.Popen(command)

    def ended() -> bool:
        never_together(job_id, lambda: bool(states(site) - {"closed"}))
        return site.inline.job(job_id).state == JobState.SUCCEEDED

    site.inline.until(ended, 60)
    site.inline.until(lambda: "ready" in states(site), 60)
    kill(second)

    assert first.wait() == -9
    assert_whole(site, site.inline.job(job_id))


def states(site: Site) -> set[str]:
    """Return the states of the living workers with engines, but for the deployment's own."""
    with site.inline.db.read() as session:
        rows = session.scalars(select(Worker).where(Worker.pool == "gpu", Worker.id != site.inline.gpu.worker_id)).all()
    return {row.state for row in rows if processes.start_time(row.pid) == row.started}


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
