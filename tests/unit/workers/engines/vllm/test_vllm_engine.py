"""An engine that hangs is ended, and its logs quote nobody."""

import ast
import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.system import pause
from workers.engines.vllm import vllm_engine
from workers.engines.vllm.vllm_engine import WITHHELD, TextlessRecords

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


def watching(engine: Engine) -> "asyncio.Task[None]":
    return asyncio.create_task(vllm_engine.watch_silence(engine.ping, lambda: engine.dead, PATIENCE, engine.end))


async def test_one_that_is_silent_is_ended_once() -> None:
    engine = Engine(None)

    began = time.monotonic()
    await asyncio.wait_for(watching(engine), 30)

    assert time.monotonic() - began >= PATIENCE
    assert (engine.asked, engine.ended, engine.left) == (1, 1, 1)


async def test_one_that_answers_is_asked_again_and_again() -> None:
    engine = Engine(0.01)
    task = watching(engine)

    await asyncio.wait_for(engine.often.wait(), 30)

    assert (engine.ended, task.done()) == (0, False)
    task.cancel()


@pytest.mark.parametrize("takes", [None, 0.01])
async def test_one_that_dies_is_left_to_whoever_asks_it(takes: float | None) -> None:
    """Also where its death does not end the call that it was to answer."""
    engine = Engine(takes)
    task = watching(engine)
    await asyncio.sleep(PATIENCE / 5)

    engine.dead = True
    await asyncio.wait_for(task, 30)

    assert engine.ended == 0


async def test_one_that_refuses_the_call_lives_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
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
async def test_whoever_stops_it_leaves_no_call_behind(when: float) -> None:
    engine = Engine(None)
    task = watching(engine)
    await asyncio.sleep(when)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)

    assert (engine.ended, engine.left) == (0, engine.asked)


TEXT = "canary: the patient's name"
parser = logging.getLogger("vllm.tool_parsers.pythonic_tool_parser")


def not_python() -> None:
    try:
        ast.parse(TEXT)
    except SyntaxError:
        parser.exception("Error in extracting tool call from response.")


def an_argument() -> None:
    parser.warning("No tool named '%s'.", TEXT)


def a_text() -> None:
    message = f"Tool call arguments '{TEXT}' do not end"
    parser.error(message)


def a_text_with_an_argument() -> None:
    parser.error(f"{TEXT}: %s", "odd")


def an_error_in_a_text() -> None:
    try:
        raise ValueError(TEXT)
    except ValueError as error:
        parser.exception(f"Error in streaming tool calls: {error}")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Callable[[], None]], str]]:
    """As a handler writes what a call logs."""
    usual = logging.getLogRecordFactory()
    logging.setLogRecordFactory(TextlessRecords(usual))

    def written(call: Callable[[], None]) -> str:
        call()
        return "\n".join(map(logging.Formatter("%(levelname)s %(filename)s %(message)s").format, caplog.records))

    yield written
    logging.setLogRecordFactory(usual)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (not_python, "ERROR test_vllm_engine.py Error in extracting tool call from response. (SyntaxError)"),
        (an_argument, "WARNING test_vllm_engine.py No tool named '%s'."),
        (a_text, f"ERROR test_vllm_engine.py {WITHHELD}"),
        (a_text_with_an_argument, f"ERROR test_vllm_engine.py {WITHHELD}"),
        (an_error_in_a_text, f"ERROR test_vllm_engine.py {WITHHELD} (ValueError)"),
    ],
)
def test_an_operator_is_told_that_it_happened_and_not_to_which_text(
    told: Callable[[Callable[[], None]], str], call: Callable[[], None], expected: str
) -> None:
    assert told(call) == expected


@pytest.mark.parametrize("name", ["vllm.v1.engine.core_client", "workers.engines.vllm.vllm_engine"])
def test_what_others_log_is_told_whole(told: Callable[[Callable[[], None]], str], name: str) -> None:
    def fails() -> None:
        try:
            raise ValueError("no memory")
        except ValueError:
            logging.getLogger(name).exception("died with %s", "rank 3")

    written = told(fails)

    assert "died with rank 3" in written
    assert "ValueError: no memory" in written


def test_a_record_of_nobody_is_made_as_before(told: object) -> None:
    assert told
    assert logging.makeLogRecord({"msg": "x"}).getMessage() == "x"
