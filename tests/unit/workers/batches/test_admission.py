"""What a worker takes on at once, with threads that a test lets go one by one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.ledger.shares import TOGETHER
from tests.support.system import eventually
from workers.batches.admission import Admission, Entry


class Gate:
    """`come` with a shard; it stays until it is told to `go`."""

    def __init__(self, slots: int) -> None:
        self.admission = Admission(slots)
        self.entered: dict[int, Entry] = {}
        self._gone: dict[int, threading.Event] = {}
        self._threads = ThreadPoolExecutor(200)

    def come(self, n: int, share: float = 1.0) -> None:
        self._gone[n] = threading.Event()
        came = threading.Event()
        self._threads.submit(self._stay, n, share, came)
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
        self.admission.close()
        for gone in self._gone.values():
            gone.set()
        self._threads.shutdown()

    def _stay(self, n: int, share: float, came: threading.Event) -> None:
        threading.Timer(0.05, came.set).start()
        with self.admission.enter(("batch_1", n), share) as entry:
            self.entered[n] = entry
            came.set()
            if entry is Entry.IN:
                self._gone[n].wait(10)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate(2)
    yield made
    made.end()


def test_whole_shards_take_a_slot_as_many_wait_and_the_rest_is_for_others(gate: Gate) -> None:
    for n in range(6):
        gate.come(n)

    assert gate.shown(0, 1, 4, 5) == ["in", "in", "away", "away"]
    assert gate.waits(2)
    assert gate.waits(3)
    gate.go(1)
    assert gate.shown(2) == ["in"]
    assert gate.waits(3)


@pytest.mark.parametrize("shares", [(1, 1, 1, 232 / 256, 1), (150 / 256,) * 7, (1 / 32, 1, 1, 1, 1)])
def test_no_more_are_sent_away_than_are_rung_too_many(gate: Gate, shares: tuple[float, ...]) -> None:
    """Who rings goes on until the shares come to twice the slots, and may go beyond that with the last one."""
    taken = 0.0
    for n, share in enumerate(shares):
        gate.come(n, share)
        if taken >= 4:
            assert gate.shown(n) == ["away"]
        elif n in gate.entered:
            assert gate.shown(n) == ["in"]
        taken += share


def test_small_shards_run_together(gate: Gate) -> None:
    for n in range(2 * TOGETHER + 1):
        gate.come(n, 1 / TOGETHER)

    assert set(gate.shown(*range(2 * TOGETHER))) == {"in"}
    assert gate.waits(2 * TOGETHER)
    assert gate.admission.threads > 2 * TOGETHER
    gate.go(7)
    assert gate.shown(2 * TOGETHER) == ["in"]


def test_a_large_one_is_not_overtaken_by_small_ones(gate: Gate) -> None:
    gate.come(0)
    gate.come(1, 0.5)
    gate.come(2)
    gate.come(3, 0.25)

    assert gate.waits(2)
    assert gate.waits(3)
    gate.go(1)
    assert gate.shown(2) == ["in"]
    gate.go(0)
    assert gate.shown(3) == ["in"]


def test_a_doorbell_that_came_twice_waits_once(gate: Gate) -> None:
    for n in range(3):
        gate.come(n)

    with gate.admission.enter(("batch_1", 2), 1.0) as entry:
        assert entry is Entry.AGAIN
    gate.go(0)
    assert gate.shown(2) == ["in"]


def test_who_waits_when_the_worker_ends_is_sent_away(gate: Gate) -> None:
    for n in range(3):
        gate.come(n)
    gate.admission.close()

    assert gate.shown(2) == ["away"]
