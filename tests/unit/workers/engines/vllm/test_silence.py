"""An engine that hangs is ended; one that answers late and makes progress is not."""

import asyncio
import itertools
import time
from collections.abc import Callable

import pytest

from tests.support.system import pause
from workers.engines.vllm import silence
from workers.engines.vllm.silence import EngineProgress

PATIENCE = 0.5


class Engine:
    """Answers after `takes` seconds, or never, or breaks."""

    def __init__(self, takes: float | None, breaks: bool = False) -> None:
        self.takes, self.breaks = takes, breaks
        self.asked = self.ended = 0
        self.dead = False
        self.left = 0  # calls that were given up
        self.often = asyncio.Event()

    async def ping(self) -> None:
        self.asked += 1
        if self.asked > 3:
            self.often.set()
        try:
            await (asyncio.sleep(self.takes) if self.takes is not None else asyncio.Event().wait())
        except asyncio.CancelledError:
            self.left += 1
            raise
        if self.breaks:
            raise RuntimeError("no answer to that")

    async def end(self) -> None:
        self.ended += 1


def watching(engine: Engine, progress: Callable[[], EngineProgress] = silence.no_progress) -> "asyncio.Task[None]":
    return asyncio.create_task(silence.watch(engine.ping, lambda: engine.dead, PATIENCE, engine.end, progress))


async def test_unresponsive_engine_is_ended_once() -> None:
    engine = Engine(None)

    began = time.monotonic()
    await asyncio.wait_for(watching(engine), 30)

    assert time.monotonic() - began >= PATIENCE
    assert (engine.asked, engine.ended, engine.left) == (1, 1, 1)


async def test_unresponsive_engine_is_ended_only_after_token_progress_stops() -> None:
    """A step of a long prompt on a busy machine: no ping is answered, and others' tokens come."""
    engine, looks = Engine(None), itertools.count()
    limit = 2 * silence.PARTS

    await asyncio.wait_for(watching(engine, lambda: EngineProgress(min(next(looks), limit), 0.0)), 60)

    assert (engine.ended, next(looks)) == (1, limit + silence.PARTS + 1)


async def test_unresponsive_engine_with_busy_processes_gets_bounded_extra_time() -> None:
    """It may turn in a circle: many libraries wait for a device in one."""
    engine, looks = Engine(None), itertools.count()

    await asyncio.wait_for(watching(engine, lambda: EngineProgress(0, float(next(looks)))), 60)

    assert (engine.ended, next(looks)) == (1, silence.BUSY * silence.PARTS + 1)


async def test_unresponsive_engine_with_nearly_idle_processes_gets_no_extra_time() -> None:
    engine, looks = Engine(None), itertools.count()

    await asyncio.wait_for(watching(engine, lambda: EngineProgress(0, next(looks) * PATIENCE / 10_000)), 60)

    assert (engine.ended, next(looks)) == (1, silence.PARTS + 1)


async def test_responsive_engine_is_pinged_repeatedly() -> None:
    engine = Engine(0.01)
    task = watching(engine)

    await asyncio.wait_for(engine.often.wait(), 30)

    assert (engine.ended, task.done()) == (0, False)
    task.cancel()


@pytest.mark.parametrize("takes", [None, 0.01])
async def test_watch_stops_without_ending_dead_engine(takes: float | None) -> None:
    """Also where its death does not end the call that it was to answer."""
    engine = Engine(takes)
    task = watching(engine)
    await asyncio.sleep(PATIENCE / 5)

    engine.dead = True
    await asyncio.wait_for(task, 30)

    assert engine.ended == 0


async def test_ping_error_is_logged_and_pinging_continues(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(0.0, breaks=True)
    task = watching(engine)

    await asyncio.wait_for(engine.often.wait(), 30)

    assert (engine.ended, task.done()) == (0, False)
    assert "engine_ping_failed" in caplog.messages
    task.cancel()


async def test_a_worker_that_stood_still_does_not_take_its_own_time_for_silence() -> None:
    engine = Engine(PATIENCE * 0.8)
    task = watching(engine)
    await asyncio.sleep(PATIENCE * 0.2)

    pause(PATIENCE * 3)  # the loop stands still, as that of a stopped process does
    await asyncio.sleep(PATIENCE * 0.3)

    assert engine.ended == 0
    task.cancel()


@pytest.mark.parametrize("when", [0.0, PATIENCE / 2])
async def test_cancelled_watch_leaves_no_pending_ping(when: float) -> None:
    engine = Engine(None)
    task = watching(engine)
    await asyncio.sleep(when)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)

    assert (engine.ended, engine.left) == (0, engine.asked)
