"""A worker takes on a bounded amount of work at once, shown with threads that a test lets go one by one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.ledger.slot_weights import SHARDS_PER_SLOT
from tests.support.system import eventually
from workers.batches.slot_scheduler import Decision, SlotScheduler


class Worker:
    """`come` with a shard; it stays until it is told to `go`."""

    def __init__(self, slots: int) -> None:
        self.slot_scheduler = SlotScheduler(slots)
        self.entered: dict[int, Decision] = {}
        self._gone: dict[int, threading.Event] = {}
        self._threads = ThreadPoolExecutor(200)

    def come(self, n: int, slot_weight: float = 1.0) -> None:
        self._gone[n] = threading.Event()
        came = threading.Event()
        self._threads.submit(self._stay, n, slot_weight, came)
        assert came.wait(30)

    def go(self, n: int) -> None:
        self._gone[n].set()

    def shown(self, *numbers: int) -> list[str]:
        """Once nothing changes any more of these."""
        eventually(lambda: all(n in self.entered for n in numbers), 5, "what became of each", every=0.005)
        return [self.entered[n].value for n in numbers]

    def waits(self, n: int) -> bool:
        return n not in self.entered

    def end(self) -> None:
        self.slot_scheduler.close()
        for gone in self._gone.values():
            gone.set()
        self._threads.shutdown()

    def _stay(self, n: int, slot_weight: float, came: threading.Event) -> None:
        threading.Timer(0.05, came.set).start()
        with self.slot_scheduler.enter(("batch_1", n), slot_weight) as decision:
            self.entered[n] = decision
            came.set()
            if decision is Decision.ADMITTED:
                self._gone[n].wait(10)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(2)
    yield made
    made.end()


def test_whole_shards_take_a_slot_as_many_wait_and_the_rest_is_for_others(worker: Worker) -> None:
    for n in range(6):
        worker.come(n)

    assert worker.shown(0, 1, 4, 5) == ["admitted", "admitted", "refused", "refused"]
    assert worker.waits(2)
    assert worker.waits(3)
    worker.go(1)
    assert worker.shown(2) == ["admitted"]
    assert worker.waits(3)


@pytest.mark.parametrize("shares", [(1, 1, 1, 232 / 256, 1), (150 / 256,) * 7, (1 / 32, 1, 1, 1, 1)])
def test_only_shards_beyond_twice_slot_capacity_are_refused(worker: Worker, shares: tuple[float, ...]) -> None:
    """The dispatcher publishes until the shares come to twice the slots, and may go beyond that with the last one."""
    taken = 0.0
    for n, slot_weight in enumerate(shares):
        worker.come(n, slot_weight)
        if taken >= 4:
            assert worker.shown(n) == ["refused"]
        elif n in worker.entered:
            assert worker.shown(n) == ["admitted"]
        taken += slot_weight


def test_small_shards_run_together(worker: Worker) -> None:
    for n in range(2 * SHARDS_PER_SLOT + 1):
        worker.come(n, 1 / SHARDS_PER_SLOT)

    assert set(worker.shown(*range(2 * SHARDS_PER_SLOT))) == {"admitted"}
    assert worker.waits(2 * SHARDS_PER_SLOT)
    assert worker.slot_scheduler.threads > 2 * SHARDS_PER_SLOT
    worker.go(7)
    assert worker.shown(2 * SHARDS_PER_SLOT) == ["admitted"]


def test_heavy_shard_is_not_overtaken_by_light_shards(worker: Worker) -> None:
    worker.come(0)
    worker.come(1, 0.5)
    worker.come(2)
    worker.come(3, 0.25)

    assert worker.waits(2)
    assert worker.waits(3)
    worker.go(1)
    assert worker.shown(2) == ["admitted"]
    worker.go(0)
    assert worker.shown(3) == ["admitted"]


def test_a_message_that_came_twice_waits_once(worker: Worker) -> None:
    for n in range(3):
        worker.come(n)

    with worker.slot_scheduler.enter(("batch_1", 2), 1.0) as decision:
        assert decision is Decision.DUPLICATE
    worker.go(0)
    assert worker.shown(2) == ["admitted"]


def test_waiting_shard_is_refused_at_scheduler_close(worker: Worker) -> None:
    for n in range(3):
        worker.come(n)
    worker.slot_scheduler.close()

    assert worker.shown(2) == ["refused"]
