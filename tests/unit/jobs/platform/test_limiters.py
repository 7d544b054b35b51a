"""Queues and limits: who is next, how much at once, and that nobody is forgotten when a wait is broken off."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.platform.limiters import POLL_SECONDS, FairQueue, Limit, SharedExclusiveLock, VirtualTime, acquire_any
from tests.support.system import eventually


def drained(queue: FairQueue[str]) -> list[str]:
    items = []
    while (item := queue.pop()) is not None:
        items.append(item)
    return items


def filled(*items: str, limit: int | None = None) -> FairQueue[str]:
    """Return a queue with `items`, whose first letters are their flows."""
    queue = FairQueue[str](limit)
    for item in items:
        queue.add(item[0], item)
    return queue


def test_flows_take_turns_and_each_keeps_its_order() -> None:
    assert drained(filled("a1", "a2", "a3", "b1", "b2", "c1")) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_flow_that_comes_later_is_next_and_gets_nothing_for_the_time_before() -> None:
    queue = filled("a1", "a2", "a3", "a4")
    served = [queue.pop(), queue.pop()]
    queue.add("b", "b1")
    queue.add("b", "b2")

    assert (served, drained(queue)) == (["a1", "a2"], ["b1", "a3", "b2", "a4"])


def test_flow_with_double_cost_is_served_half_as_often() -> None:
    queue = FairQueue[str]()
    for _ in range(20):
        queue.add("heavy", "heavy", cost=2.0)
        queue.add("light", "light")

    first = Counter(queue.pop() for _ in range(15))
    assert first == {"light": 10, "heavy": 5}


def test_a_flow_holds_so_many_items_and_others_still_get_in() -> None:
    queue = filled("a1", "a2", limit=2)

    assert (queue.add("a", "a3"), queue.add("b", "b1")) == (False, True)
    assert (len(queue), queue.count("a"), queue.count("c")) == (3, 2, 0)
    assert queue.pop() == "a1"
    assert queue.add("a", "a3")


def test_a_flow_that_is_not_ready_is_passed_over() -> None:
    queue = filled("a1", "b1", "b2")

    served = [queue.pop(ready=lambda flow: flow == "b") for _ in range(3)]
    assert served == ["b1", "b2", None]
    assert queue.pop() == "a1"


def test_drop_removes_all_items_of_flow() -> None:
    queue = filled("a1", "a2", "b1")

    assert (queue.drop("a"), queue.drop("a"), drained(queue)) == (["a1", "a2"], [], ["b1"])


def test_threads_that_add_and_take_lose_nothing() -> None:
    queue = FairQueue[int]()
    taken: list[int] = []

    def take() -> None:
        while len(taken) < 4000:
            if (item := queue.pop()) is not None:
                taken.append(item)

    with ThreadPoolExecutor(8) as threads:
        takers = [threads.submit(take) for _ in range(4)]
        for start in range(4):
            threads.submit(lambda start=start: [queue.add(str(n % 7), n) for n in range(start, 4000, 4)])
        for taker in takers:
            taker.result(60)

    assert sorted(taken) == list(range(4000))


def test_flows_that_are_not_ahead_are_forgotten() -> None:
    time = VirtualTime[int]()
    for flow in range(10):
        time.charge(flow, 1.0)
    time.charge(0, 5.0)
    time.advance(1)

    assert (time.start(0), time.start(1), len(time)) == (6.0, 1.0, 1)


class Clients:
    """Tasks that acquire from `limit`; each holds what it got until it is told to go."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.inside: list[str] = []
        self.refused: list[str] = []
        self._gone: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, weight: float = 1.0, priority: int = 0) -> None:
        self._gone[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, weight, priority))
        await _rest()

    async def go(self, name: str) -> None:
        self._gone[name].set()
        await _rest()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])
        await _rest()

    async def _stay(self, name: str, weight: float, priority: int) -> None:
        async with self.limit.hold(weight, priority) as held:
            if not held:
                self.refused.append(name)
                return
            self.inside.append(name)
            try:
                await self._gone[name].wait()
            finally:
                self.inside.remove(name)


async def _rest() -> None:
    """Let every task go on as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_are_in_and_the_others_follow_in_order() -> None:
    clients = Clients(Limit(2))
    for name in "abcd":
        await clients.come(name)
    before = list(clients.inside)
    await clients.go("a")

    assert (before, clients.inside) == (["a", "b"], ["b", "c"])
    assert (clients.limit.used, clients.limit.waiting) == (2, 1)


async def test_a_free_limit_is_acquired_without_a_pause() -> None:
    limit, passed = Limit(1), []
    other = asyncio.create_task(_note(passed))
    assert await limit.acquire()

    assert passed == []
    await other


async def _note(passed: list[int]) -> None:
    passed.append(1)


async def test_lower_priorities_are_first() -> None:
    clients = Clients(Limit(1))
    for name, priority in (("a", 0), ("b", 5), ("c", 1), ("d", 1)):
        await clients.come(name, priority=priority)
    order = []
    for _ in range(4):
        order += clients.inside
        await clients.go(clients.inside[0])

    assert order == ["a", "c", "d", "b"]


async def test_heavy_client_is_not_overtaken_by_light_clients() -> None:
    clients = Clients(Limit(2))
    for name, weight in (("a", 1.0), ("b", 0.5), ("c", 1.0), ("d", 0.25)):
        await clients.come(name, weight)
    before = list(clients.inside)
    can_barge = clients.limit.try_acquire(0.25)
    await clients.go("b")
    then = list(clients.inside)
    await clients.go("a")

    assert (before, can_barge, then, clients.inside) == (["a", "b"], False, ["a", "c"], ["c", "d"])


async def test_weights_that_rounding_makes_too_large_together_fit() -> None:
    limit = Limit(1)

    assert [limit.try_acquire(0.1) for _ in range(11)] == [True] * 10 + [False]


async def test_a_cancelled_wait_lets_those_behind_it_in() -> None:
    clients = Clients(Limit(2))
    for name, weight in (("a", 1.5), ("heavy", 1.0), ("light", 0.5)):
        await clients.come(name, weight)
    before = list(clients.inside)
    await clients.cancel("heavy")

    assert (before, clients.inside) == (["a"], ["a", "light"])
    assert (clients.limit.used, clients.limit.waiting) == (2, 0)


async def test_client_cancelled_at_admission_passes_turn_to_next() -> None:
    clients = Clients(Limit(1))
    for name in "abc":
        await clients.come(name)
    clients._gone["a"].set()
    clients.limit.release()  # `b` is admitted, and does not know it yet
    clients.limit.used += 1  # what `a` returns when it goes
    clients.tasks["b"].cancel()
    await _rest()

    assert (clients.inside, clients.limit.used) == (["c"], 1)


async def test_error_inside_limit_releases_it() -> None:
    limit = Limit(1)
    with pytest.raises(ZeroDivisionError):
        async with limit.hold():
            _ = 1 / 0

    assert limit.try_acquire()


async def test_grown_limit_admits_waiting_clients_and_shrunk_limit_evicts_none() -> None:
    clients = Clients(Limit(1))
    for name in "abcd":
        await clients.come(name)
    clients.limit.resize(3)
    await _rest()
    grown = list(clients.inside)
    clients.limit.resize(1)
    await clients.go("a")
    await clients.go("b")
    shrunk = list(clients.inside)
    await clients.go("c")

    assert (grown, shrunk, clients.inside) == (["a", "b", "c"], ["c"], ["d"])


async def test_limit_with_full_wait_queue_refuses_next_client() -> None:
    clients = Clients(Limit(1, line=1))
    for name in "abc":
        await clients.come(name)
    await clients.go("a")
    await clients.come("d")

    assert (clients.refused, clients.inside, clients.limit.waiting) == (["c"], ["b"], 1)


async def test_refuse_waiting_refuses_all_queued_clients_but_no_later_client() -> None:
    clients = Clients(Limit(1))
    for name in "abc":
        await clients.come(name)
    clients.limit.refuse_waiting()
    await clients.come("d")
    await clients.go("a")

    assert (clients.refused, clients.inside, clients.limit.waiting) == (["b", "c"], ["d"], 0)


async def test_a_closed_limit_refuses_everybody() -> None:
    clients = Clients(Limit(2))
    for name, weight in (("a", 1.0), ("b", 2.0)):
        await clients.come(name, weight)
    clients.limit.close()
    await clients.come("c")

    assert (clients.inside, clients.refused, clients.limit.try_acquire()) == (["a"], ["b", "c"], False)


async def test_the_first_of_several_limits_lets_in_once() -> None:
    one, two = Limit(1), Limit(1)
    assert await acquire_any((one, two)) is one
    assert await acquire_any((one, two)) is two
    wait = asyncio.create_task(acquire_any((one, two)))
    behind = asyncio.create_task(one.acquire())
    await _rest()
    two.release()

    assert await asyncio.wait_for(wait, 30) is two
    assert (one.used, one.waiting, two.used, two.waiting) == (1, 1, 1, 0)
    one.release()
    assert await asyncio.wait_for(behind, 30)


async def test_refusal_by_any_of_several_limits_ends_wait() -> None:
    one, two = Limit(0), Limit(0)
    wait = asyncio.create_task(acquire_any((one, two)))
    await _rest()
    two.refuse_waiting()

    assert await asyncio.wait_for(wait, 30) is None
    assert one.waiting == 0


async def test_no_wake_up_is_lost_among_cancellations() -> None:
    dice, limits = random.Random(7), (Limit(2), Limit(1))
    inside = Counter[int]()

    async def visit() -> None:
        limit = await acquire_any(dice.sample(limits, dice.choice((1, 2))), priority=dice.randrange(3))
        assert limit is not None
        inside[limits.index(limit)] += 1
        assert inside[0] <= 3
        assert inside[1] <= 1
        try:
            await asyncio.sleep(0)
        finally:
            inside[limits.index(limit)] -= 1
            limit.release()

    tasks = [asyncio.create_task(visit()) for _ in range(500)]
    for _ in range(300):
        dice.choice(tasks).cancel()
        limits[0].resize(dice.randrange(1, 4))
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks, return_exceptions=True)

    assert [error for task in tasks if not task.cancelled() and (error := task.exception())] == []
    assert [(limit.used, limit.waiting) for limit in limits] == [(0, 0), (0, 0)]


def test_threads_wait_for_their_turn_and_none_is_forgotten() -> None:
    limit, lock, inside, most = Limit(3), threading.Lock(), 0, 0

    def visit(n: int) -> bool:
        nonlocal inside, most
        if not limit.acquire_blocking(timeout=0.0001 if n % 5 == 0 else None):
            return False
        with lock:
            inside += 1
            most = max(most, inside)
        with lock:
            inside -= 1
        limit.release()
        return True

    with ThreadPoolExecutor(16) as threads:
        entered = list(threads.map(visit, range(2000)))

    assert all(entered[n] for n in range(2000) if n % 5)
    assert (most <= 3, limit.used, limit.waiting) == (True, 0, 0)


def test_a_thread_gives_up_after_its_timeout_and_leaves_no_trace() -> None:
    limit = Limit(1)
    limit.acquire_blocking()

    assert not limit.acquire_blocking(timeout=0.01)
    limit.release()
    assert (limit.used, limit.waiting, limit.try_acquire()) == (0, 0, True)


@pytest.mark.parametrize("end", [Limit.close, Limit.refuse_waiting], ids=["closed", "refused"])
def test_threads_that_wait_are_refused(end: Callable[[Limit], None]) -> None:
    limit = Limit(1)
    limit.acquire_blocking()
    with ThreadPoolExecutor(1) as threads:
        waits: Future[bool] = threads.submit(limit.acquire_blocking)
        eventually(lambda: limit.waiting == 1, 30, "a thread in line", every=0.001)
        end(limit)

        assert waits.result(30) is False


# ── processes that share an engine: any number among others, or one alone; a second descriptor is a second process ──

_A_WHILE = 5 * POLL_SECONDS


@pytest.fixture
def here(tmp_path: Path) -> Iterator[SharedExclusiveLock]:
    company = SharedExclusiveLock(tmp_path / "gpu", patience=30)
    yield company
    company.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[SharedExclusiveLock]:
    company = SharedExclusiveLock(tmp_path / "gpu", patience=30)
    yield company
    company.close()


def test_requests_of_several_processes_are_in_flight_together(
    here: SharedExclusiveLock, there: SharedExclusiveLock
) -> None:
    assert here.try_shared()
    assert there.try_shared()


async def test_exclusive_lock_waits_for_shared_holders(here: SharedExclusiveLock, there: SharedExclusiveLock) -> None:
    there.try_shared()
    alone = asyncio.create_task(here.acquire_exclusive())
    await asyncio.sleep(_A_WHILE)
    waited = not alone.done()
    there.release()

    async with asyncio.timeout(30):
        await alone
    assert waited


async def test_shared_lock_is_refused_during_exclusive_wait_and_hold(
    here: SharedExclusiveLock, there: SharedExclusiveLock
) -> None:
    there.try_shared()
    alone = asyncio.create_task(here.acquire_exclusive())
    await asyncio.sleep(_A_WHILE)
    while_waiting = there.try_shared()
    there.release()
    await alone
    while_alone = there.try_shared()
    here.release()

    assert (while_waiting, while_alone, there.try_shared()) == (False, False, True)


async def test_exclusive_holders_take_turns(here: SharedExclusiveLock, there: SharedExclusiveLock) -> None:
    await here.acquire_exclusive()
    second = asyncio.create_task(there.acquire_exclusive())
    await asyncio.sleep(_A_WHILE)
    waited = not second.done()
    here.release()

    async with asyncio.timeout(30):
        await second
    assert waited


async def test_wait_for_hanging_holder_ends_after_patience(tmp_path: Path, here: SharedExclusiveLock) -> None:
    hasty = SharedExclusiveLock(tmp_path / "gpu", patience=_A_WHILE)
    await here.acquire_exclusive()
    at_first = hasty.try_shared()
    await asyncio.sleep(2 * _A_WHILE)
    later = hasty.try_shared()
    hasty.release()

    async with asyncio.timeout(30):
        await hasty.acquire_exclusive()
    assert (at_first, later) == (False, True)
    hasty.close()


async def test_exclusive_lock_of_dead_process_is_released(tmp_path: Path, there: SharedExclusiveLock) -> None:
    dying = SharedExclusiveLock(tmp_path / "gpu", patience=30)
    await dying.acquire_exclusive()
    shut = there.try_shared()
    dying.close()

    await asyncio.sleep(POLL_SECONDS)
    assert (shut, there.try_shared()) == (False, True)
