"""Send the steps of trainings to experiment trackers, in threads of the processes that train.

    finetune_step ─┬─ thread: a claimed row of `finetune_tracking` ─▶ MlflowTracker   while the job trains
                   └─ thread: a claimed row of `finetune_tracking` ─▶ WandbTracker    the same, or offline at its end

The training knows nothing of these threads. A tracker that is slow or away is asked again later. A step is sent once
its row does not change any more, and no step is sent twice: neither after a kill of this process, nor when a resumed
training trains steps again.
"""

import logging
import threading
from collections.abc import Mapping
from itertools import islice, takewhile
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.finetuning import names, tracking
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan, FinetuneStep, FinetuneTracking
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.security.tables import Project
from workers.finetuning.mlflow_tracker import MlflowTracker
from workers.finetuning.results import steps_after
from workers.finetuning.tracked_run import TrackedRun, Tracker, TrackingFailed
from workers.finetuning.wandb_tracker import WandbTracker
from workers.runtime.context import Context

log = logging.getLogger(__name__)
#: Steps that are sent under one claim while the job trains.
_STEPS: Final = 1000
#: What a claim lasts: longer than any tracker takes.
_CLAIM_SECONDS: Final = 600.0


def start(context: Context) -> None:
    """Start a thread for each tracker of the deployment. They end with the process, wherever they are."""
    for name, tracker in _trackers(context).items():
        threading.Thread(target=_run, args=(context, name, tracker), name=name, daemon=True).start()


def _trackers(context: Context) -> Mapping[str, Tracker]:
    config, chosen = context.config, dict[str, Tracker]()
    if config.mlflow_url:
        chosen[tracking.MLFLOW] = MlflowTracker(config)
    if config.wandb_mode != "off":
        chosen[tracking.WANDB] = WandbTracker(config, context.storage)
    return chosen


def _run(context: Context, name: str, tracker: Tracker) -> None:
    while not context.stop.is_set():
        try:
            busy = send_due(context, name, tracker)
        except DatabaseBusy:
            log.warning("tracking_waits_for_database", extra={"tracker": name})
            busy = False
        if not busy:
            context.stop.wait(context.timings.tracking_look)


def send_due(context: Context, name: str, tracker: Tracker) -> bool:
    """Send the steps of the run that has been due for the longest time; return False where none is due."""
    with context.db.read() as session:
        row = tracking.due(session, name)
    if row is None:
        return False
    with context.db.write() as session:
        claimed = tracking.claim(session, row, _CLAIM_SECONDS)
    if claimed is not None:
        try:
            _send(context, tracker, row, claimed)
        except DatabaseBusy:
            raise
        except Exception as error:  # whatever it is: the steps of other runs are sent all the same
            log.warning("tracking_failed", exc_info=True, extra={"job_id": row.job_id, "tracker": name})
            reason = str(error) if isinstance(error, TrackingFailed) else "an internal error, see the worker's log."
            with context.db.write() as session:
                tracking.record_failure(session, row, claimed, reason)
    return True


def _send(context: Context, tracker: Tracker, row: FinetuneTracking, claimed: float) -> None:
    """Send what a run lacks, and note how far it came."""
    with context.db.read() as session:
        run, settled = _run_of(session, row)
    limit = None if run.end else _STEPS if tracker.live else 0
    run_id, step = run.run_id, run.step
    if limit != 0:
        steps = takewhile(lambda step: step.step <= settled, steps_after(context, row.job_id, row.step))
        run_id, step = tracker.send(run, islice(steps, limit))
    delay = tracker.seconds if step - row.step < _STEPS else 0.0
    due_at = None if run.end else now() + delay
    with context.db.write() as session:
        tracking.record_steps(session, row, claimed, step=step, run_id=run_id, due_at=due_at)


def _run_of(session: Session, row: FinetuneTracking) -> tuple[TrackedRun, int]:
    """Return the run that a row is about, and the last step whose row does not change any more."""
    job = session.get_one(Job, row.job_id)
    asked = FineTuning.model_validate(job.payload)
    end = job.state if job.state in TERMINAL else None
    last = session.scalar(select(func.max(FinetuneStep.step)).where(FinetuneStep.job_id == job.id)) or 0
    run = TrackedRun(
        job_id=job.id,
        project=names.slug(session.get_one(Project, job.project_id).name),
        model=asked.result,
        options=_options(asked, session.get(FinetunePlan, job.id)),
        wandb=asked.wandb,
        run_id=row.run_id,
        step=row.step,
        end=end,
    )
    return run, last if end else last - 1  # the evaluation of the last step may still come


def _options(asked: FineTuning, plan: FinetunePlan | None) -> dict[str, Any]:
    """Return the options that a training runs with."""
    chosen = {"base": asked.base, "method": asked.method, "peft": asked.peft, "seed": asked.seed}
    numbers = ("n_epochs", "batch_size", "learning_rate_multiplier", "rows", "tokens", "steps")
    planned = {name: getattr(plan, name) for name in numbers} if plan else {}
    return chosen | planned | asked.training.model_dump(mode="json")
