"""When a process that ended is started again, and what is told about it."""

import itertools
from pathlib import Path

import pytest

from cli.up.service import FIRST_DELAY, MAX_DELAY, SETTLED, Program, Service, State, next_delay


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(Program("one", ("true",), {}, tmp_path, tmp_path / "one.log"))


def test_delays_double_from_a_fifth_of_a_second_up_to_fifteen() -> None:
    delays = list(itertools.accumulate(range(9), lambda delay, _: next_delay(delay, lived=1.0), initial=0.0))[1:]

    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == MAX_DELAY


def test_a_process_that_lived_half_a_minute_starts_over_with_the_shortest_delay() -> None:
    assert next_delay(MAX_DELAY, lived=SETTLED) == FIRST_DELAY
    assert next_delay(MAX_DELAY, lived=SETTLED - 1) == MAX_DELAY


def test_unexpected_exit_waits_for_restart(service: Service) -> None:
    service.record_end(3)

    assert service.state is State.WAITING
    assert service.ending == "exit code 3"
    assert (service.to_json()["ending"], service.to_json()["delay"]) == ("exit code 3", FIRST_DELAY)


def test_a_service_that_waits_is_stopped_at_once(service: Service) -> None:
    service.record_end(-9)

    service.stop()

    assert service.state is State.STOPPED
    assert service.ending == "killed by SIGKILL"
    assert service.to_json()["pid"] is None


def test_unstartable_process_is_retried_with_longer_delay(tmp_path: Path) -> None:
    service = Service(Program("one", ("true",), {}, tmp_path, tmp_path / "no such folder" / "one.log"))

    service.start()
    service.start()

    assert service.state is State.WAITING
    assert service.ending == "could not be started: No such file or directory"
    assert service.delay == 2 * FIRST_DELAY
