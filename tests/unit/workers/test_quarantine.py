"""An engine that dies again and again is left alone, and the operator is told why."""

import asyncio
import tempfile
from collections.abc import Iterator

import pytest

from workers import quarantine
from workers.answering import Answering
from workers.engines.fake import FakeEngine
from workers.engines.port import EngineDead, Request
from workers.host import EngineHost, GaveUp
from workers.quarantine import LOG_LINES, Deaths, last_words
from workers.records import Item


class Clock:
    at = 0.0

    def __call__(self) -> float:
        return self.at


class Mortal(FakeEngine):
    """Dies at every request until it is mended."""

    mended = False

    async def answer(self, request: Request):  # type: ignore[no-untyped-def]
        if not self.mended:
            await self.close()
            raise EngineDead("out of memory")
        return await super().answer(request)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def host(told: list[str]) -> Iterator[EngineHost]:
    host = EngineHost(Mortal(), lambda: None, None, Deaths(3, 60.0), told.append)
    host.start()
    yield host
    host.close()


def item() -> Item:
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "a secret"}]}
    return Item(0, "r0", "batch_req_0", Request("/v1/chat/completions", body, "req_0"))


def ask(host: EngineHost, tries: int = 8) -> list[object]:
    answers: list[object] = []
    host.call(Answering(host, tries, lambda _item, answer: answers.append(answer)).run([item()])).result(10)
    return answers


def test_deaths_count_within_their_time() -> None:
    clock = Clock()
    deaths = Deaths(3, 60.0, clock)

    for at in (0.0, 50.0, 100.0):
        clock.at = at
        deaths.note(EngineDead("x"))
    assert not deaths.too_many

    clock.at = 110.0
    deaths.note(EngineDead("x"))
    assert deaths.too_many


def test_an_engine_that_died_with_nothing_in_flight_accuses_no_line() -> None:
    deaths = Deaths(3, 60.0)

    deaths.note(EngineDead("no device"))

    assert "the last time of: no device" in deaths.told()
    assert "In flight" not in deaths.told()


def test_the_line_that_is_there_each_time_is_told_however_many_others_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_MOST_REMEMBERED", 100)
    deaths = Deaths(3, 60.0)

    for death in range(3):
        deaths.suspect("poison")
        for n in range(90):
            deaths.suspect(f"innocent_{death}_{n}")

    assert "In flight then: poison (3 times), innocent_0_0 (1 times)" in deaths.told()


def test_an_engine_that_dies_too_often_is_not_built_again(host: EngineHost, told: list[str]) -> None:
    with pytest.raises(GaveUp):
        ask(host)
    starts = host.engine.starts  # type: ignore[attr-defined]
    with pytest.raises(GaveUp):
        ask(host)

    assert host.engine.starts == starts == 3  # type: ignore[attr-defined]
    assert len(told) == 1
    assert "died 3 times within 60 s, the last time of: out of memory" in told[0]
    assert "batch_req_0 (3 times)" in told[0]
    assert "secret" not in told[0]


def test_once_released_it_is_built_and_answers(host: EngineHost) -> None:
    with pytest.raises(GaveUp):
        ask(host)
    host.engine.mended = True  # type: ignore[attr-defined]

    host.release()

    assert len(ask(host)) == 1


def test_an_engine_that_does_not_come_up_counts_as_dead(told: list[str]) -> None:
    class Stillborn(FakeEngine):
        async def start(self) -> None:
            if self.starts:
                raise EngineDead("no device")
            await super().start()

        async def answer(self, request: Request):  # type: ignore[no-untyped-def]
            raise EngineDead("no device")

    host = EngineHost(Stillborn(), lambda: None, None, Deaths(4, 60.0), told.append)
    host.start()
    try:
        for _ in range(2):
            with pytest.raises(GaveUp):
                ask(host)
    finally:
        host.close()
    assert len(told) == 1


def test_the_last_words_are_the_end_of_a_log_that_is_a_file() -> None:
    with tempfile.TemporaryFile() as log:
        log.write(b"".join(b"line %d\n" % n for n in range(5000)))
        log.flush()

        assert last_words(log.fileno()) == [f"line {n}" for n in range(5000 - LOG_LINES, 5000)]


def test_a_log_that_is_a_pipe_says_nothing() -> None:
    async def words() -> list[str]:
        import os

        reading, writing = os.pipe()
        try:
            return last_words(writing)
        finally:
            os.close(reading)
            os.close(writing)

    assert asyncio.run(words()) == []
