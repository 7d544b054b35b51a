"""How the lines of a shard are answered when engines break."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest

from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine, reply
from workers.engines.port import Answer, EngineBusy, EngineDead, EngineFault, Request, Unserved
from workers.runtime.answering import Answering
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.output_lines import FailureHistory, Item

CHAT = "/v1/chat/completions"


def _items(*prompts: str) -> list[Item]:
    return [
        Item(
            n, f"r{n}", f"batch_req_{n}", Request(CHAT, {"model": "fake-model", "messages": [{"content": p}]}, f"q{n}")
        )
        for n, p in enumerate(prompts)
    ]


class Answers:
    """Hold what was emitted."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def __call__(self, item: Item, _answer: Answer) -> None:
        self.lines.append(item.line)


@pytest.fixture
def hosts() -> Iterator[list[EngineHost]]:
    made: list[EngineHost] = []
    yield made
    for host in made:
        host.close()


def _host(hosts: list[EngineHost], engine: FakeEngine, **seconds: float) -> EngineHost:
    host = EngineHost(engine, lambda: None, timings=replace(Timings(), **seconds))
    host.start()
    hosts.append(host)
    return host


def _run(host: EngineHost, items: list[Item], tries: int = 4) -> tuple[list[int], list[int]]:
    answers = Answers()
    broken = host.call(Answering(host, tries, answers).run(items)).result(30)
    return sorted(answers.lines), [item.line for item in broken]


@pytest.mark.parametrize(
    ("history", "width", "spent"),
    [
        (FailureHistory(), None, False),
        (FailureHistory(faults=1), 16, False),
        (FailureHistory(faults=2), 16, False),
        (FailureHistory(faults=3), 1, False),
        (FailureHistory(faults=4), 1, True),
        (FailureHistory(deaths=1), 16, False),
        (FailureHistory(deaths=2), 1, False),
        (FailureHistory(deaths=9, faults=2), 1, False),
        (FailureHistory(deaths=3, isolated=1), 1, False),
        (FailureHistory(deaths=4, isolated=2), 1, True),
    ],
)
def test_repeated_failures_narrow_group_to_single_line(history: FailureHistory, width: int | None, spent: bool) -> None:
    assert (history.width(4), history.is_spent(4)) == (width, spent)
    assert FailureHistory(*history.to_list()) == history


def test_a_line_knows_how_long_the_engine_had_it_once_that_has_answered(hosts: list[EngineHost]) -> None:
    class Slow(FakeEngine):
        async def answer(self, request: Request) -> Answer:
            await asyncio.sleep(0.2)
            return await super().answer(request)

    items = _items("fine", "!crash")

    _run(_host(hosts, Slow()), items)

    assert items[0].seconds is not None
    assert items[0].seconds >= 0.2
    assert items[1].seconds is None


def test_line_refused_twice_is_answered_however_often_its_neighbours_poison_kills_the_engine(
    hosts: list[EngineHost],
) -> None:
    host = _host(hosts, FakeEngine())

    answered, broken = _run(host, _items("!crash", "!flaky2", "fine"))

    assert (answered, broken) == ([1, 2], [0])


def test_poison_is_alone_in_the_end_and_its_neighbours_are_answered(hosts: list[EngineHost]) -> None:
    engine = FakeEngine()
    host = _host(hosts, engine)

    answered, broken = _run(host, _items("a", "b", "!crash", "c", "d"))

    assert (answered, broken) == ([0, 1, 3, 4], [2])
    assert engine.starts == 1 + 4


def test_two_poisons_are_both_found(hosts: list[EngineHost]) -> None:
    host = _host(hosts, FakeEngine())

    answered, broken = _run(host, _items("!crash one", *"abcdefgh", "!crash two"))

    assert answered == list(range(1, 9))
    assert sorted(broken) == [0, 9]


def test_last_try_has_nothing_else_in_flight(hosts: list[EngineHost]) -> None:
    """Two shards on one engine: while one is alone, the other's requests wait."""
    flying = {"now": 0, "beside": 0}

    class Watched(FakeEngine):
        async def answer(self, request: Request) -> Answer:
            flying["now"] += 1
            await asyncio.sleep(0.005)
            try:
                if request.request_id == "poison":
                    flying["beside"] = max(flying["beside"], flying["now"] - 1) if flying.get("last") else 0
                    raise EngineFault("reset")
                return reply(request.url, request.body, "x")
            finally:
                flying["now"] -= 1

    host = _host(hosts, Watched())
    (poison,) = _items("p")
    poison.request = Request(CHAT, poison.request.body, "poison")
    poison.failures.faults = 3
    flying["last"] = 1
    others = Answering(host, 4, Answers()).run(_items(*"abcdefghij"))
    busy = host.call(others)

    broken = host.call(Answering(host, 4, Answers()).run([poison])).result(30)

    busy.result(30)
    assert len(broken) == 1
    assert flying["beside"] == 0


def test_busy_is_no_fault_and_gives_up_only_after_silence(
    hosts: list[EngineHost],
) -> None:
    host = _host(hosts, FakeEngine(fault=lambda _: EngineBusy("full", retry_after=0.01)), engine_busy=0.8)
    items = _items("a", "b")

    with pytest.raises(GaveUp):
        _run(host, items)

    assert [item.failures for item in items] == [FailureHistory(), FailureHistory()]


def test_a_line_that_must_wait_stops_none_that_is_being_answered(
    hosts: list[EngineHost],
) -> None:
    asked: list[str] = []

    class Slow(FakeEngine):
        async def answer(self, request: Request) -> Answer:
            asked.append(request.request_id)
            if request.request_id == "q0":
                if "done" in asked:
                    return reply(request.url, request.body, "x")
                raise EngineBusy("no worker embeds", retry_after=0.5)
            await asyncio.sleep(2.0)
            asked.append("done")
            return reply(request.url, request.body, "x")

    assert _run(_host(hosts, Slow(), engine_busy=1.0), _items("waits", "slow")) == ([0, 1], [])
    assert asked.count("q1") == 1


def test_hung_line_and_busy_line_release_shard(
    hosts: list[EngineHost],
) -> None:
    busy = EngineBusy("full", retry_after=0.5)
    engine = FakeEngine(fault=lambda request: busy if request.request_id == "q0" else None)
    host = _host(hosts, engine, engine_busy=0.5, engine_busy_in_progress=2.0)

    with pytest.raises(GaveUp):
        _run(host, _items("a", "!hang"))


def test_long_retry_after_gives_the_shard_back_for_that_long(hosts: list[EngineHost]) -> None:
    host = _host(hosts, FakeEngine(fault=lambda _: EngineBusy("quota", retry_after=30)))

    with pytest.raises(GaveUp) as given:
        _run(host, _items("a"))

    assert given.value.delay == 30


def test_run_gives_up_on_a_model_that_no_worker_serves(hosts: list[EngineHost]) -> None:
    asked: list[str] = []
    engine = FakeEngine(fault=lambda _: Unserved("no such model here", retry_after=1.0), on_prompt=asked.append)

    with pytest.raises(GaveUp) as given:
        _run(_host(hosts, engine), _items("a", "b"))

    assert (given.value.delay, given.value.grows, len(asked)) == (2.0, True, 2)


def test_engine_that_does_not_come_back_gives_the_shard_back(hosts: list[EngineHost]) -> None:
    class Mortal(FakeEngine):
        async def start(self) -> None:
            if self.starts:
                raise EngineDead("no second life")
            await super().start()

    host = _host(hosts, Mortal())

    with pytest.raises(GaveUp):
        _run(host, _items("!crash"))


def test_unforeseen_error_of_an_engine_is_the_lines_fault(hosts: list[EngineHost]) -> None:
    host = _host(hosts, FakeEngine(fault=lambda request: KeyError("bug") if request.request_id == "q1" else None))

    answered, broken = _run(host, _items("a", "b", "c"))

    assert (answered, broken) == ([0, 2], [1])


def test_cancelling_stops_every_lane(hosts: list[EngineHost]) -> None:
    asked = threading.Event()
    host = _host(hosts, FakeEngine(on_prompt=lambda _: asked.set()))
    future = host.call(Answering(host, 4, Answers()).run(_items("!hang", "!hang", "!hang")))
    assert asked.wait(30)

    future.cancel()

    host.call(asyncio.sleep(0.05)).result(30)
    assert host.call(_tasks()).result(30) == 0


def test_a_request_that_is_cancelled_by_its_engine_cancels_the_run(hosts: list[EngineHost]) -> None:
    cancelled = asyncio.CancelledError()
    host = _host(hosts, FakeEngine(fault=lambda request: cancelled if request.request_id == "q1" else None))

    with pytest.raises(CancelledError):
        _run(host, _items("a", "b", "c"))


async def _tasks() -> int:
    return len(asyncio.all_tasks()) - 1
