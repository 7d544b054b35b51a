"""Estimate what a training will take, by the newest job that trained the same base by the same method.

    its last steps ─▶ median of tokens a second ─▶ seconds for all tokens of the plan
                   └─▶ highest memory

A job with `dry_run` trains three steps and makes no model, so that there is such a job.
"""

import statistics
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.finetuning.jobs import NAME
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan, FinetuneStep
from jobs.ledger.tables import Job

#: Steps that a dry run trains, and that an estimate needs.
MEASURED_STEPS: Final = 3
_STEPS: Final = 100  # of a job that an estimate looks at
_JOBS: Final = 200  # the newest ones, among which is looked for such a job


@dataclass(frozen=True, slots=True)
class Estimate:
    """The seconds of all steps, without evaluations and checkpoints, and the bytes that a step takes.

    Both are those of a job that trained in batches of `batch_size` rows; `steps` of it were looked at.
    """

    seconds: float
    memory_bytes: int
    steps: int
    batch_size: int
    measured_at: float


def estimate_from_history(session: Session, asked: FineTuning, plan: FinetunePlan) -> Estimate | None:
    """Return the estimate for a planned job; None where no job has trained the base so."""
    jobs = select(Job.id, Job.payload, FinetunePlan.batch_size).join(FinetunePlan, FinetunePlan.job_id == Job.id)
    rows = session.execute(jobs.where(Job.kind == NAME).order_by(Job.created_at.desc()).limit(_JOBS)).all()
    for job_id, payload, batch_size in rows:
        if _is_alike(FineTuning.model_validate(payload), asked):
            trained = select(FinetuneStep).where(FinetuneStep.job_id == job_id).order_by(FinetuneStep.step.desc())
            steps = session.scalars(trained.limit(_STEPS)).all()
            speeds = [step.tokens_per_second for step in steps if step.tokens_per_second]
            if len(speeds) >= MEASURED_STEPS:
                return Estimate(
                    seconds=plan.tokens * plan.n_epochs / statistics.median(speeds),
                    memory_bytes=max(step.memory_bytes or 0 for step in steps),
                    steps=len(speeds),
                    batch_size=batch_size,
                    measured_at=steps[0].created_at,
                )
    return None


def _is_alike(earlier: FineTuning, asked: FineTuning) -> bool:
    """Return whether both train the same base by the same method. What `auto` chooses is a kind of its own."""
    return all(getattr(earlier, name) == getattr(asked, name) for name in ("base", "method", "peft"))
