"""What an experiment tracker is told of a training, and the port that trackers implement."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.finetuning.payload import Wandb
from jobs.finetuning.tables import FinetuneStep


class TrackingFailed(Exception):
    """A tracker did not take what it was sent. The message is shown to clients: it holds no URL and no secret."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The training of one job, as a tracker shows it.

    `run_id` is the tracker's, None until it has one. `step` is the last step that was sent. `end` is how the job ended:
    `succeeded`, `failed` or `cancelled`; None while it goes on.
    """

    job_id: str
    project: str
    model: str
    options: Mapping[str, Any]
    wandb: Wandb | None
    run_id: str | None
    step: int
    end: str | None


class Tracker(Protocol):
    """An experiment tracker. `live`: it takes steps while the job trains, each `seconds`; otherwise all at the end."""

    live: bool
    seconds: float

    def send(self, run: TrackedRun, steps: Iterable[FinetuneStep]) -> tuple[str | None, int]:
        """Send the steps that the run does not have, and its end; return its id and the last step that it has.

        Raises TrackingFailed. Sent again, nothing is there twice.
        """
        ...
