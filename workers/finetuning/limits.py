"""The limits of a training: how long workers may hold the job, and how long its trainers may run.

Both times are counted over all claims. The recorder writes them with its other records, so that a kill costs the count
a few seconds. A job that is paused, or waits, holds no claim: that time is not counted.
"""

import time
from typing import Final

from jobs.finetuning.payload import EarlyStopping
from jobs.finetuning.tables import FinetunePlan
from workers.engines.training.protocol import Failed

_FIELD: Final = "early_stopping"


class TrainingTime:
    """The time that a job has trained, as its plan says for earlier claims, with that of this claim."""

    def __init__(self, plan: FinetunePlan) -> None:
        self._earlier, self._earlier_device = plan.seconds, plan.device_seconds
        self._began = time.monotonic()
        self._device = 0.0
        self._trainer_began: float | None = None

    def note_start(self) -> None:
        self._trainer_began = time.monotonic()

    def note_end(self) -> None:
        self._device = self.device_seconds - self._earlier_device
        self._trainer_began = None

    @property
    def seconds(self) -> float:
        """Return the seconds for which workers have held the training."""
        return self._earlier + time.monotonic() - self._began

    @property
    def device_seconds(self) -> float:
        """Return the seconds for which trainers have run."""
        running = 0.0 if self._trainer_began is None else time.monotonic() - self._trainer_began
        return self._earlier_device + self._device + running


def time_error(spent: TrainingTime, limits: EarlyStopping, finetune_max_seconds: int) -> Failed | None:
    """Return the error of a job that has trained longer than it may; None while it may go on."""
    checks = (
        ("time_limit", f"{_FIELD}.max_seconds", spent.seconds, limits.max_seconds),
        ("time_limit", None, spent.seconds, finetune_max_seconds or None),
        ("device_time_limit", f"{_FIELD}.max_device_seconds", spent.device_seconds, limits.max_device_seconds),
    )
    for code, param, seconds, limit in checks:
        if limit is not None and seconds >= limit:
            name = f"'{param}'" if param else "NIGHTMILL_FINETUNE_MAX_SECONDS"
            return Failed(code, f"The job has trained for the {limit} seconds that {name} allows.", param=param)
    return None


def memory_error(limits: EarlyStopping) -> Failed:
    """Return the error of a job one of whose steps took more memory than it may."""
    param = f"{_FIELD}.max_memory_bytes"
    message = f"A step took more than the {limits.max_memory_bytes} bytes that '{param}' allows."
    return Failed("memory_limit", message, param=param)
