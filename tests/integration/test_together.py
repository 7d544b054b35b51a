"""Jobs of a line each, on a worker whose whole shard has eight lines: they run together, as far as there is room."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.ledger.states import JobState
from jobs.ledger.tables import Outbox
from jobs.queues import Task
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from tests.support.system import eventually
from workers.batches.slot_scheduler import SlotScheduler
from workers.engines.port import Answer, Request
from workers.lifecycle import run_with_slot
from workers.runtime.engine_host import EngineHost

pytestmark = pytest.mark.verify

WHOLE = 8


class Held(FakeEngine):
    """Answers nobody until it is let go."""

    asks = 0
    free = False

    async def answer(self, request: Request) -> Answer:
        self.asks += 1
        while not self.free:  # noqa: ASYNC110  a test's thread sets it
            await asyncio.sleep(0.01)
        return await super().answer(request)


@pytest.fixture
def engine() -> Held:
    return Held((MODEL,))


@pytest.fixture
def inline(db: Database, tmp_path: Path, engine: Held) -> Iterator[InlineDeployment]:
    with running(db, tmp_path, engine, shard_lines=WHOLE) as made:
        yield made


def _planned(inline: InlineDeployment, count: int) -> list[str]:
    """Jobs of a line each whose messages the test publishes."""
    inline.elsewhere = lambda task, _queue, _arguments: task == Task.RUN
    jobs = [inline.submit(jsonl([chat_line("one", f"hello {n}")])) for n in range(count)]
    inline.until(lambda: all(inline.job(job_id).state == JobState.RUNNING for job_id in jobs), 60)
    inline.until(lambda: _published(inline, jobs) == set(jobs), 60)
    return jobs


def _published(inline: InlineDeployment, jobs: list[str]) -> set[str]:
    """Whose messages are published and unclaimed, as far as the dispatcher knows."""
    with inline.db.read() as session:
        out = select(Outbox.job_id).where(Outbox.job_id.in_(jobs), Outbox.published_at.is_not(None))
        return set(session.scalars(out))


def test_a_message_that_comes_while_the_engine_loads_is_for_another_worker(inline: InlineDeployment) -> None:
    (job_id,) = _planned(inline, 1)
    loading = EngineHost(FakeEngine((MODEL,)), lambda: None)

    run_with_slot(inline.gpu, loading, SlotScheduler(1), job_id, 0)

    assert _published(inline, [job_id]) == set()
    loading.loop.close()


def test_a_stale_message_takes_no_room(inline: InlineDeployment, engine: Held) -> None:
    (job_id,) = _planned(inline, 1)
    slot_scheduler = SlotScheduler(1)
    engine.free = True
    run_with_slot(inline.gpu, inline.host, slot_scheduler, job_id, 0)

    with slot_scheduler.enter(("batch_other", 0), 1.0):
        run_with_slot(inline.gpu, inline.host, slot_scheduler, job_id, 0)  # would wait here

    assert engine.asks == 1


def test_small_jobs_run_concurrently_and_overflow_job_is_released(inline: InlineDeployment, engine: Held) -> None:
    slot_scheduler = SlotScheduler(1)
    jobs = _planned(inline, 2 * WHOLE + 1)
    with ThreadPoolExecutor(2 * WHOLE) as threads:
        heard = [
            threads.submit(run_with_slot, inline.gpu, inline.host, slot_scheduler, job_id, 0) for job_id in jobs[:-1]
        ]
        eventually(lambda: engine.asks == WHOLE, 10, "a slot full of lines")
        eventually(lambda: slot_scheduler.waiting == pytest.approx(1.0), 10, "a slot full of who waits")

        run_with_slot(inline.gpu, inline.host, slot_scheduler, jobs[-1], 0)

        assert jobs[-1] not in _published(inline, jobs)
        assert engine.asks == WHOLE
        engine.free = True
        for one in heard:
            one.result(30)

    assert {inline.job(job_id).state for job_id in jobs[:-1]} == {JobState.SUCCEEDED}
    assert engine.asks == 2 * WHOLE
    inline.elsewhere = lambda *_: False
    inline.until(lambda: inline.job(jobs[-1]).state == JobState.SUCCEEDED)
