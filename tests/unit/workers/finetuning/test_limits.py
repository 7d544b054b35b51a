"""The limits of a training: which is reached first, and what is counted."""

import time

import pytest

from jobs.finetuning.payload import EarlyStopping
from jobs.finetuning.tables import FinetunePlan
from workers.engines.training.protocol import Failed
from workers.finetuning.limits import TrainingTime, time_error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[0])
    return times


def trained(seconds: float = 0.0, device_seconds: float = 0.0) -> TrainingTime:
    return TrainingTime(FinetunePlan(seconds=seconds, device_seconds=device_seconds))


def test_times_of_this_claim_are_added_to_those_of_earlier_claims(clock: list[float]) -> None:
    spent = trained(10.0, 5.0)

    clock[0] += 2
    spent.note_start()
    clock[0] += 3
    during = (spent.seconds, spent.device_seconds)
    spent.note_end()
    clock[0] += 4
    spent.note_start()
    clock[0] += 1

    assert during == (15.0, 8.0)
    assert (spent.seconds, spent.device_seconds) == (20.0, 9.0)


@pytest.mark.parametrize(
    ("limits", "deployment", "code", "param"),
    [
        ({}, 0, None, None),
        ({"max_seconds": 11, "max_device_seconds": 6}, 11, None, None),
        ({"max_seconds": 10}, 0, "time_limit", "early_stopping.max_seconds"),
        ({"max_seconds": 11}, 10, "time_limit", None),
        ({"max_device_seconds": 5}, 0, "device_time_limit", "early_stopping.max_device_seconds"),
    ],
)
def test_first_limit_that_is_reached_is_named(
    clock: list[float], limits: dict[str, int], deployment: int, code: str | None, param: str | None
) -> None:
    error = time_error(trained(10.0, 5.0), EarlyStopping(**limits), deployment)

    assert (error and error.code, error and error.param) == (code, param)
    assert error is None or isinstance(error, Failed)


def test_limit_of_the_deployment_is_named_by_its_setting(clock: list[float]) -> None:
    error = time_error(trained(10.0), EarlyStopping(), 10)

    assert error is not None
    assert error.message == "The job has trained for the 10 seconds that NIGHTMILL_FINETUNE_MAX_SECONDS allows."
