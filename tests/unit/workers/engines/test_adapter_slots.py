"""Adapters are loaded while nothing else runs, together, and the least recently used one goes."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from workers.engines.adapter_slots import AdapterSlots
from workers.engines.port import Adapter, AdapterRefused, EngineDead


def adapter(name: str) -> Adapter:
    return Adapter(f"lora-{name}", name, Path(name))


A, B, C = adapter("a"), adapter("b"), adapter("c")


class Weights:
    """Stand in for an engine's weights. `log` holds each change and each request, `running` the current requests."""

    def __init__(self, limit: int = 2) -> None:
        self.slots = AdapterSlots(limit, self.load, self.unload)
        self.log: list[str] = []
        self.running = 0
        self.refuses: dict[str, Exception] = {}

    async def load(self, adapter: Adapter) -> None:
        assert not self.running, "an adapter is loaded beside a request"
        await asyncio.sleep(0)
        assert not self.running, "a request began while an adapter was loaded"
        if error := self.refuses.get(adapter.name):
            raise error
        self.log.append(f"+{adapter.sha256}")

    async def unload(self, adapter: Adapter) -> None:
        assert not self.running, "an adapter is unloaded beside a request"
        self.log.append(f"-{adapter.sha256}")

    async def ask(self, adapter: Adapter | None, until: asyncio.Event | None = None) -> None:
        async with self.slots.running(adapter):
            assert adapter is None or adapter.name in self.slots.loaded
            self.running += 1
            try:
                await (until.wait() if until else asyncio.sleep(0))
            finally:
                self.running -= 1


async def test_requests_of_loaded_adapters_and_of_the_base_run_together() -> None:
    weights, until = Weights(), asyncio.Event()
    await weights.ask(A)
    tasks = [asyncio.create_task(weights.ask(one, until)) for one in (A, None, A)]
    await asyncio.sleep(0.01)

    assert weights.running == 3
    until.set()
    await asyncio.gather(*tasks)
    assert weights.log == ["+a"]


async def test_adapter_load_waits_for_running_and_blocks_later_requests() -> None:
    weights, until = Weights(), asyncio.Event()
    first = asyncio.create_task(weights.ask(None, until))
    await asyncio.sleep(0)
    loading = asyncio.create_task(weights.ask(A))
    await asyncio.sleep(0)
    later = asyncio.create_task(weights.ask(None))
    await asyncio.sleep(0.01)

    assert weights.log == []
    assert weights.running == 1
    assert not later.done()
    until.set()
    await asyncio.gather(first, loading, later)
    assert weights.log == ["+a"]


async def test_adapters_that_wait_for_the_same_moment_are_loaded_together() -> None:
    weights, until = Weights(), asyncio.Event()
    running = asyncio.create_task(weights.ask(None, until))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(weights.ask(one)) for one in (A, B, A)]
    await asyncio.sleep(0.01)
    until.set()
    await asyncio.gather(running, *waiting)

    assert weights.log == ["+a", "+b"]


async def test_adapter_that_requests_asked_for_while_it_was_loading_is_loaded_once() -> None:
    weights = Weights()
    first = asyncio.create_task(weights.ask(A))
    await asyncio.sleep(0)  # it begins to load A
    await asyncio.gather(first, *(weights.ask(A) for _ in range(3)))

    await weights.ask(B)
    await weights.ask(A)

    assert weights.log == ["+a", "+b"]


async def test_the_least_recently_used_adapter_goes() -> None:
    weights = Weights(limit=2)
    for one in (A, B, A, C):
        await weights.ask(one)

    assert weights.log == ["+a", "+b", "-b", "+c"]
    assert weights.slots.loaded == (A.name, C.name)


async def test_more_adapters_than_slots_are_all_answered() -> None:
    weights = Weights(limit=2)
    many = [adapter(str(n)) for n in range(7)]

    async with asyncio.timeout(30):
        await asyncio.gather(*(weights.ask(many[n % 7]) for n in range(70)))

    assert len(weights.slots.loaded) == 2


async def test_refused_adapter_is_not_reloaded_and_blocks_no_other_adapter() -> None:
    weights = Weights()
    weights.refuses[A.name] = AdapterRefused("of another base", failed_probe=True)
    with pytest.raises(AdapterRefused):
        await weights.ask(A)
    del weights.refuses[A.name]

    with pytest.raises(AdapterRefused, match="of another base") as caught:
        await weights.ask(A)
    assert caught.value.failed_probe
    await weights.ask(B)
    assert weights.log == ["+b"]


async def test_refused_adapter_is_reloaded_after_operator_decision() -> None:
    weights = Weights()
    weights.refuses[A.name] = AdapterRefused("unlike its trainer", failed_probe=True)
    for trial in (0, 1):
        with pytest.raises(AdapterRefused):
            await weights.ask(replace(A, trial=trial))
    del weights.refuses[A.name]

    with pytest.raises(AdapterRefused):
        await weights.ask(replace(A, trial=1))
    await weights.ask(replace(A, trial=2))
    assert weights.log == ["+a"]


async def test_engine_death_during_load_fails_every_waiting_request() -> None:
    weights = Weights()
    weights.refuses[A.name] = EngineDead("gone")

    outcomes = await asyncio.gather(weights.ask(A), weights.ask(A), return_exceptions=True)

    assert [type(one) for one in outcomes] == [EngineDead, EngineDead]


async def test_cancelled_request_does_not_stop_pending_adapter_load() -> None:
    weights, until = Weights(), asyncio.Event()
    running = asyncio.create_task(weights.ask(None, until))
    await asyncio.sleep(0)
    left, stays = (asyncio.create_task(weights.ask(A)) for _ in range(2))
    await asyncio.sleep(0.01)
    left.cancel()
    until.set()
    await asyncio.gather(running, stays)

    assert left.cancelled()
    assert weights.log == ["+a"]


async def test_an_engine_without_slots_takes_no_adapters() -> None:
    weights = Weights(limit=0)
    await weights.ask(None)

    with pytest.raises(AdapterRefused, match="enable_lora"):
        await weights.ask(A)


async def test_isolated_work_waits_for_running_and_blocks_later_requests() -> None:
    weights, until = Weights(), asyncio.Event()
    first = asyncio.create_task(weights.ask(None, until))
    await asyncio.sleep(0)

    async def work() -> str:
        assert (weights.running, weights.slots.loaded) == (0, (A.name,))
        await asyncio.sleep(0.01)
        assert weights.running == 0
        return "done"

    alone = asyncio.create_task(weights.slots.run_exclusively(A, work))
    await asyncio.sleep(0)
    later = asyncio.create_task(weights.ask(None))
    await asyncio.sleep(0.01)
    assert not later.done()
    until.set()

    assert await alone == "done"
    await asyncio.gather(first, later)


async def test_failure_of_isolated_work_affects_no_other_request() -> None:
    weights = Weights()

    async def work() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    alone = asyncio.create_task(weights.slots.run_exclusively(None, work))
    await asyncio.sleep(0)
    await weights.ask(None)

    with pytest.raises(ValueError):  # noqa: PT011 (it has no message)
        await alone
