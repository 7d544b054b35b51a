"""Trainings survive trouble: a base that leaves, storage that is away, bytes that were changed, one device.

The trainer computes nothing: `tests.support.fake_trainer`.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import select

from jobs.errors import StorageUnavailable
from jobs.finetuning import datasets, jobs
from jobs.finetuning.tables import FinetuneCheckpoint, FinetuneData, FinetuneStep
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform import processes
from jobs.queues import Queue, Task
from jobs.timings import Timings
from tests.integration.test_finetuning import (  # noqa: F401 (fixtures)
    Site,
    assert_whole,
    freed,
    module,
    running_trainer,
    site,
    trainer_of,
)
from tests.support import training_worker
from tests.support.fake_trainer import loss_of
from tests.support.inline_deployment import InlineDeployment
from workers import lifecycle
from workers.runtime.context import Pool, build

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]  # seconds for each: a training has to be going on


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the worker try again soon after what was away, and the test wait long: it starts processes."""
    timings = replace(Timings(), storage_retry=0.2)
    pool = Pool("finetune", (Queue.FINETUNE,), 1, models=("*",))
    monkeypatch.setattr(training_worker, "context_of", lambda config: build(config, pool, timings))
    until = InlineDeployment.until
    monkeypatch.setattr(
        InlineDeployment, "until", lambda inline, reached, timeout=0.0: until(inline, reached, max(timeout, 120.0))
    )


@pytest.fixture
def paused(site: Site, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """Return a job that was paused while it trained; its trainer is gone, and the next one is fast."""
    job_id, pid = running_trainer(site, monkeypatch, 1.0)
    change(site, job_id, jobs.pause)
    site.inline.until(lambda: freed(site, job_id))
    assert processes.start_time(pid) is None
    monkeypatch.setenv("FAKE_TRAINER", "{}")
    return job_id


def change(site: Site, job_id: str, how: Any) -> None:  # noqa: F811
    with site.inline.db.write() as session:
        how(session, session.get_one(Job, job_id), actor="test")


def waits_for(site: Site, job_id: str) -> str | None:  # noqa: F811
    return site.inline.job(job_id).waiting_for


def test_base_that_leaves_the_models_file_is_waited_for(site: Site, paused: str) -> None:  # noqa: F811
    models = Path(site.inline.config.models_file)
    text = models.read_text()
    models.write_text(text.replace('"tiny"', '"another"'))
    change(site, paused, jobs.resume)
    site.inline.until(lambda: waits_for(site, paused) == "model")
    assert site.inline.job(paused).state == JobState.RUNNING

    models.write_text(text)
    (job,) = site.inline.drain(paused)

    assert_whole(site, job)


def test_base_that_leaves_while_its_trainer_runs_costs_nothing(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, _ = running_trainer(site, monkeypatch, 0.05)
    Path(site.inline.config.models_file).write_text('{"models": {}}')
    site.base.rmdir()

    (job,) = site.inline.drain(job_id)

    assert_whole(site, job)


def test_resumed_job_waits_for_missing_base_folder(site: Site, paused: str) -> None:  # noqa: F811
    site.base.rename(site.base.with_name("elsewhere"))
    change(site, paused, jobs.resume)
    site.inline.until(lambda: waits_for(site, paused) == "model")

    site.base.with_name("elsewhere").rename(site.base)
    (job,) = site.inline.drain(paused)

    assert_whole(site, job)


def test_resumed_job_waits_for_unavailable_storage(
    site: Site,  # noqa: F811
    paused: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as away:
        away.setattr(site.worker.storage, "reader", _away)
        change(site, paused, jobs.resume)
        site.inline.until(lambda: waits_for(site, paused) == "disk")

    (job,) = site.inline.drain(paused)

    assert_whole(site, job)


def _away(*_: Any) -> NoReturn:
    raise StorageUnavailable


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "manifest.json", "rows"])
def test_bytes_that_were_changed_are_not_trained_on(site: Site, paused: str, name: str) -> None:  # noqa: F811
    last = max(site.rows(FinetuneCheckpoint, paused), key=lambda row: row.step)
    (data,) = {row.sha256 for row in site.rows(FinetuneData, paused)}
    path = datasets.location(data) if name == "rows" else f"{last.location}/{name}"
    content = site.read(path)
    site.inline.storage.put(path, content.replace(b"1", b"2") if b"1" in content else content + b" ")
    before = site.count(FinetuneStep, paused)
    change(site, paused, jobs.resume)

    (job,) = site.inline.drain(paused)

    assert [error["code"] for error in job.errors or []] == ["checkpoint_damaged"]
    assert site.count(FinetuneStep, paused) == before


def test_paused_job_is_cancelled_without_a_trainer(site: Site, paused: str) -> None:  # noqa: F811
    change(site, paused, lambda session, job, actor: ledger.cancel(session, job.id, actor=actor))

    (job,) = site.inline.drain(paused)

    assert (job.state, job.errors) == (JobState.CANCELLED, None)
    assert job.output_file_id is not None
    assert site.count(FinetuneCheckpoint, paused) > 0


def test_job_that_is_cancelled_while_it_makes_its_last_checkpoint_is_cancelled(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, pid = running_trainer(site, monkeypatch, 0.5)
    change(site, job_id, jobs.pause)
    change(site, job_id, lambda session, job, actor: ledger.cancel(session, job.id, actor=actor))

    (job,) = site.inline.drain(job_id)

    assert job.state == JobState.CANCELLED
    site.inline.until(lambda: processes.start_time(pid) is None)


def test_job_that_is_paused_before_it_is_planned_begins_nothing(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = site.submit(monkeypatch)
    change(site, job_id, jobs.pause)
    site.inline.until(lambda: waits_for(site, job_id) == "pause" or site.inline.job(job_id).state != JobState.QUEUED)
    for _ in range(20):
        site.inline.dispatcher.tick()
    assert site.count(FinetuneStep, job_id) == 0

    change(site, job_id, jobs.resume)
    (job,) = site.inline.drain(job_id)

    assert_whole(site, job)


@pytest.fixture
def trainer(site: Site) -> Iterator[None]:  # noqa: F811
    """Train one job at a time, as a process of the pool does."""
    thread = ThreadPoolExecutor(1)

    def train(task: str, queue: str, arguments: Any) -> bool:
        if task == Task.RUN and queue == Queue.FINETUNE:
            thread.submit(lifecycle.run_shard, site.worker, Queue.FINETUNE, (), *arguments)
        return queue == Queue.FINETUNE

    site.inline.elsewhere = train
    yield
    thread.shutdown()


def test_trainings_of_two_projects_take_turns_and_lose_nothing(
    site: Site,  # noqa: F811
    trainer: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.take_turns_after(0.5)
    monkeypatch.setenv("FAKE_TRAINER", '{"seconds": 0.1}')  # 20 steps: four turns each at least
    first, second = [site.submit(monkeypatch, "many") for _ in range(2)]
    other = site.submit(monkeypatch, "one")

    ended = site.inline.drain(first, second, other, timeout=120)

    for job in ended:
        assert_whole(site, job)
        losses = {step.step: step.train_loss for step in site.rows(FinetuneStep, job.id)}
        assert losses == {step: loss_of(7, step) for step in losses}, "as without a stop"
    assert [job_id == other for job_id in turns_of(site)[:3]] in ([False, True, False], [True, False, True])
    resumed = [event for job in ended for event in site.events(job.id) if "goes on after step" in event]
    assert len(resumed) >= 2


def test_two_jobs_train_sequentially_on_single_device(
    site: Site,  # noqa: F811
    trainer: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.take_turns_after(0.0)  # with other projects, of which there is none
    monkeypatch.setenv("FAKE_TRAINER", '{"seconds": 0.05}')
    ids = [site.submit(monkeypatch) for _ in range(2)]
    both, stop = threading.Event(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            if all(trainer_of(job_id) is not None for job_id in ids):
                both.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    ended = site.inline.drain(*ids, timeout=60)
    stop.set()
    watcher.join()

    for job in ended:
        assert_whole(site, job)
    assert not both.is_set()
    assert sorted(turns_of(site)) == sorted(ids)


def turns_of(site: Site) -> list[str]:  # noqa: F811
    """Return the jobs in the order in which they trained, each once a turn."""
    with site.inline.db.read() as session:
        ordered = session.scalars(
            select(FinetuneStep.job_id).order_by(FinetuneStep.created_at, FinetuneStep.step)
        ).all()
    return [job_id for n, job_id in enumerate(ordered) if n == 0 or ordered[n - 1] != job_id]
