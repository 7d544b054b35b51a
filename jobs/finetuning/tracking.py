"""Progress of the steps of jobs in experiment trackers: MLflow, Weights & Biases.

    a training starts ─▶ a row for each tracker, due ─▶ claimed: due once the claim is over ─┬─ sent: the last step
                                                           ▲                                 ├─ failed: due later
                                                           └─────────────────────────────────┴─ ended: never due

The steps themselves wait in `finetune_step`: a tracker that cannot be reached costs no memory, and holds nothing up.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count, insert_into
from jobs.finetuning import training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneTracking
from jobs.settings import Settings

MLFLOW: Final = "mlflow"
WANDB: Final = "wandb"
TITLES: Final = {MLFLOW: "MLflow", WANDB: "Weights & Biases"}
#: A tracker that failed so often in a row, at last once in `_MAX_DELAY`, is asked no more.
MAX_FAILURES: Final = 100
_DELAY: Final = 5.0
_MAX_DELAY: Final = 600.0


def trackers_of(config: Settings, asked: FineTuning) -> list[str]:
    """Return the trackers that the steps of a job go to; those of a dry run go to none."""
    chosen = {MLFLOW: bool(config.mlflow_url), WANDB: config.wandb_mode != "off" and asked.wandb is not None}
    return [name for name, goes in chosen.items() if goes and not asked.dry_run]


def begin(session: Session, job_id: str, trackers: Sequence[str]) -> None:
    """Add the rows of a job whose training starts. Called again, it changes nothing."""
    for name in trackers:
        row = {"job_id": job_id, "tracker": name, "step": 0, "failures": 0, "due_at": now()}
        session.execute(insert_into(session, FinetuneTracking).values(row).on_conflict_do_nothing())


def due(session: Session, tracker: str) -> FinetuneTracking | None:
    """Return the row of a tracker that has been due for the longest time, if any is."""
    rows = select(FinetuneTracking).where(FinetuneTracking.tracker == tracker, FinetuneTracking.due_at <= now())
    return session.scalar(rows.order_by(FinetuneTracking.due_at).limit(1))


def claim(session: Session, row: FinetuneTracking, seconds: float) -> float | None:
    """Claim a due row for some seconds; return when the claim ends, or None when another worker has the row."""
    until = now() + seconds
    return until if _change(session, row, row.due_at, due_at=until) else None


def record_steps(
    session: Session, row: FinetuneTracking, claimed: float, *, step: int, run_id: str | None, due_at: float | None
) -> None:
    """Note the last step that a tracker has, unless the claim is over. `due_at` is None where its run has ended."""
    _change(session, row, claimed, step=step, run_id=run_id, failures=0, due_at=due_at)


def record_failure(session: Session, row: FinetuneTracking, claimed: float, reason: str) -> None:
    """Note that a tracker took nothing, unless the claim is over: it is asked later. The first time is an event."""
    failures, title = row.failures + 1, TITLES[row.tracker]
    given_up = failures >= MAX_FAILURES
    due_at = None if given_up else now() + min(_DELAY * 2 ** min(row.failures, 10), _MAX_DELAY)
    if not _change(session, row, claimed, failures=failures, due_at=due_at):
        return
    if failures == 1:
        message = f"{title} did not take the steps: {reason} The training goes on, and they are sent again later."
        training_events.record(session, row.job_id, message, level="warn")
    elif given_up:
        training_events.record(session, row.job_id, f"{title} is given up: {reason}", level="warn")


def _change(session: Session, row: FinetuneTracking, was_due: float | None, **values: object) -> bool:
    """Change a row that is still due at `was_due`; return whether it was."""
    same = (
        FinetuneTracking.job_id == row.job_id,
        FinetuneTracking.tracker == row.tracker,
        FinetuneTracking.due_at == was_due,
    )
    return bool(execute_and_count(session, update(FinetuneTracking).where(*same).values(values), UNSEEN))
