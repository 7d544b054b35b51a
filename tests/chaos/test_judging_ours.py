"""What is asked of a run's answers and files finds what it is there to find."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.journal import Journal
from tests.chaos.judging_ours import judge_broken, own_failures, unexcused
from tests.chaos.load import Broken

_FAULT = '{"error": {"message": "The engine gave no answer: connection reset", "code": "engine_error"}}'
_OURS = '{"error": {"message": "The engine gave no answer.", "code": "engine_error"}}'


@pytest.mark.parametrize(
    ("at", "said", "ended", "passes"),
    [
        (100.0, _FAULT, [95.0], True),
        (100.0, _FAULT, [20.0, 99.5, 300.0], True),
        (100.0, _FAULT, [100.4], True),  # who watches it saw it a moment later
        (100.0, _FAULT, [], False),
        (100.0, _FAULT, [20.0, 300.0], False),
        (100.0, _OURS, [95.0], False),
    ],
)
def test_only_the_end_of_an_engine_excuses_an_answer_that_says_it_gave_none(
    at: float, said: str, ended: list[float], passes: bool
) -> None:
    assert (not unexcused([Broken(at, said)], ended, 15)) is passes


def test_clients_of_both_projects_are_asked_and_logs_are_read() -> None:
    clients = [SimpleNamespace(broken=[Broken(at, f"{at} {_FAULT}")]) for at in (100.0, 200.0)]
    load = SimpleNamespace(client=clients[0], strangers=clients[1])
    system = SimpleNamespace(errors=lambda: {"gpu": ["interactive_failed"]})
    journal = Journal(1)
    campaign: Any = SimpleNamespace(engines=(), struck=(), load=load, system=system, journal=journal, patience=1)

    judge_broken(campaign)

    assert journal.violations == [f"100.0 {_FAULT}", f"200.0 {_FAULT}", "gpu: interactive_failed"]


def test_a_worker_that_broke_over_a_question_is_found_in_its_log() -> None:
    ours, others = '{"level": "error", "event": "interactive_failed"}', '{"level": "error", "event": "x"}'

    assert own_failures({"gpu": [others, ours], "web": [others]}) == [f"gpu: {ours}"]
