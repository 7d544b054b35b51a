"""The time limit that many requests share a timer for."""

import asyncio

import pytest

from workers.engines.http.deadlines import MAX_EXTENSION, Deadlines


async def _spend(deadlines: Deadlines, until: asyncio.Event) -> str:
    with deadlines.limit():
        await until.wait()
    return "in time"


async def test_only_overdue_task_times_out() -> None:
    deadlines, never, soon = Deadlines(0.05), asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(_spend(deadlines, event)) for event in (soon, never, soon, never)]
    asyncio.get_running_loop().call_later(0.01, soon.set)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [str, TimeoutError, str, TimeoutError]


async def test_the_time_of_a_request_begins_with_that_request() -> None:
    deadlines, never = Deadlines(0.05), asyncio.Event()
    first = asyncio.create_task(_spend(deadlines, never))
    await asyncio.sleep(0.03)
    second = asyncio.create_task(_spend(deadlines, never))
    with pytest.raises(TimeoutError):
        await first
    assert not second.done()
    with pytest.raises(TimeoutError):
        await second


async def test_idle_timer_is_rearmed_for_next_request() -> None:
    deadlines, done, never = Deadlines(0.02), asyncio.Event(), asyncio.Event()
    done.set()
    assert await _spend(deadlines, done) == "in time"
    await asyncio.sleep(0.04)
    with pytest.raises(TimeoutError):
        await _spend(deadlines, never)


async def test_external_cancellation_is_not_converted_to_timeout() -> None:
    deadlines = Deadlines(0.02)
    task = asyncio.create_task(_spend(deadlines, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.04)  # nobody is cancelled again


async def test_a_cancellation_from_outside_wins_over_a_time_that_is_up_at_once() -> None:
    deadlines = Deadlines(0.0)

    async def spend() -> None:
        with deadlines.limit():
            await asyncio.Event().wait()

    task = asyncio.create_task(spend())
    await asyncio.sleep(0)
    deadlines._look()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_after_a_timeout_the_task_goes_on() -> None:
    deadlines = Deadlines(0.02)
    with pytest.raises(TimeoutError):
        await _spend(deadlines, asyncio.Event())
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_progress_renews_deadline_up_to_fivefold_limit() -> None:
    deadlines, renewed = Deadlines(0.2), 0
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def spend() -> None:
        nonlocal renewed
        with deadlines.limit() as deadline:
            while True:
                await asyncio.sleep(0.02)
                deadline.renew()
                renewed += 1

    others = [asyncio.create_task(_spend(deadlines, asyncio.Event())) for _ in range(2)]
    with pytest.raises(TimeoutError):
        await spend()

    assert loop.time() - began >= 0.2 * (MAX_EXTENSION - 1)
    assert renewed > MAX_EXTENSION
    assert all(isinstance(error, TimeoutError) for error in await asyncio.gather(*others, return_exceptions=True))
