"""The curve of a fine-tuning job: means over groups of its steps, so that its size does not grow with the training."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.finetuning.tables import FinetuneStep


class Point(NamedTuple):
    """Means over a group of steps, the last of which is `step`; None where no step of the group has a value."""

    step: int
    train_loss: float
    train_accuracy: float | None
    valid_loss: float | None
    valid_accuracy: float | None
    learning_rate: float
    tokens_per_second: float | None


def read(session: Session, job_id: str, limit: int) -> Sequence[Point]:
    """Return the curve of a job in at most `limit` points, the first steps first."""
    steps = FinetuneStep.job_id == job_id
    last = session.scalar(select(func.max(FinetuneStep.step)).where(steps)) or 0
    group = (FinetuneStep.step - 1) // max(1, -(-last // limit))
    measured = (
        FinetuneStep.train_loss,
        FinetuneStep.train_accuracy,
        FinetuneStep.valid_loss,
        FinetuneStep.valid_accuracy,
        FinetuneStep.learning_rate,
        FinetuneStep.tokens_per_second,
    )
    means = select(func.max(FinetuneStep.step), *(func.avg(column) for column in measured))
    rows = session.execute(means.where(steps, FinetuneStep.step <= last).group_by(group).order_by(group))
    return [Point(*row) for row in rows]
