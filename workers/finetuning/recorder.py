"""Record the trainer's reports in SQL: a row for each step, events, and when the training is expected to end.

Reports are gathered; `flush` writes them in one transaction, once a second at most, and only while the claim holds. A
step that is trained again after a kill gets the row of the last time.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.errors import ClaimLost
from jobs.finetuning import tracking, training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan, FinetuneStep
from jobs.ledger import shards
from jobs.ledger.shards import ShardClaim
from jobs.usage import minutes
from jobs.usage.minutes import TRAINING, Amounts, UsageKey
from workers.engines.training.protocol import EvaluationReport, Forgetting, Started, Step
from workers.finetuning.limits import TrainingTime
from workers.runtime.context import Context

_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 5.0  # while there is no step to write: the time that is spent
#: Events of metrics for a job, besides those of evaluated steps: clients page through them.
_METRICS: Final = 100


@dataclass(slots=True)
class _Event:
    message: str
    level: training_events.Level = "info"
    data: dict[str, Any] | None = None
    is_metrics: bool = False


class Recorder:
    """The records of one claim on a job's training."""

    def __init__(self, context: Context, claim: ShardClaim, spent: TrainingTime) -> None:
        self._context, self._claim, self._spent = context, claim, spent
        self._steps: dict[int, dict[str, Any]] = {}
        self._evaluations: dict[int, EvaluationReport] = {}
        self._events: list[_Event] = []
        self._total = self._first = 0
        self._began = self._flushed = time.monotonic()
        self._estimate: float | None = None
        asked = FineTuning.model_validate(claim.job.payload)
        self._base = asked.base
        self._trackers = tracking.trackers_of(context.config, asked)

    def record_start(self, report: Started) -> None:
        self._total, self._first, self._began = report.steps, report.resumed_step, time.monotonic()
        measured = "".join(f", {dtype} {seconds:.3g} s/step" for dtype, seconds in report.seconds_per_step.items())
        what = "started" if report.resumed_step == 0 else f"goes on after step {report.resumed_step}"
        if report.memory_bytes:
            numbers = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in report.memory_bytes.items())
            self._events.append(_Event(f"'{report.peft}' is trained, by memory: {numbers}.", data=report.memory_bytes))
        self.tell(f"Fine-tuning {what} on {report.device} in {report.dtype}{measured}.")

    def record_step(self, report: Step) -> None:
        self._steps[report.step] = {
            "job_id": self._claim.job.id,
            "step": report.step,
            "created_at": now(),
            "epoch": report.epoch,
            "train_loss": report.loss,
            "train_accuracy": report.accuracy,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "tokens_per_second": report.tokens_per_second,
            "memory_bytes": report.memory_bytes,
            "valid_loss": None,
            "valid_accuracy": None,
        }
        done = report.step - self._first
        self._estimate = now() + (self._total - report.step) * (time.monotonic() - self._began) / done
        if report.step % max(1, self._total // _METRICS) == 0 or report.step == self._total:
            text = f"Step {report.step}/{self._total}: training loss={report.loss:.2f}"
            data = {"train_loss": report.loss, "train_mean_token_accuracy": report.accuracy, **report.preference}
            self._metrics(report.step, text, data)

    def record_evaluation(self, report: EvaluationReport) -> None:
        if (row := self._steps.get(report.step)) is not None:
            row |= {"valid_loss": report.loss, "valid_accuracy": report.accuracy}
        else:
            self._evaluations[report.step] = report
        text = f"Step {report.step}/{self._total}: full validation loss={report.loss:.2f}"
        data = {"full_valid_loss": report.loss, "full_valid_mean_token_accuracy": report.accuracy}
        data |= {f"full_valid_{name}": value for name, value in report.preference.items()}
        self._metrics(report.step, text, data)

    def record_forgetting(self, report: Forgetting) -> None:
        """Record how well the model predicts general text before training, or before and after it."""
        text = f"Mean loss on {report.texts} {report.source}: {report.before:.3f} nats a token before training"
        data: dict[str, Any] = {"general_nll_before": report.before}
        if report.after is not None:
            text += f", {report.after:.3f} after it"
            data["general_nll_after"] = report.after
        self._events.append(_Event(f"{text}.", data=data))

    def tell(self, message: str, level: training_events.Level = "info") -> None:
        """Record an event with the next flush."""
        self._events.append(_Event(message, level))

    def flush_if_due(self) -> None:
        """Write what was gathered, if the last time is long enough ago. Raises ClaimLost."""
        if time.monotonic() - self._flushed >= (_SECONDS if self._steps else _IDLE_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Write what was gathered. Raises ClaimLost."""
        self._context.db.retrying(self.write)
        self.reset()

    def write(self, session: Session) -> None:
        """Write what was gathered, in a transaction of the caller's; `reset` follows its commit. Raises ClaimLost."""
        job_id = self._claim.job.id
        if shards.heartbeat(session, [(job_id, self._claim.n, self._claim.epoch)]):
            raise ClaimLost
        self._record_usage(session)
        for row in self._steps.values():
            new = insert_into(session, FinetuneStep).values(row)
            session.execute(new.on_conflict_do_update(index_elements=["job_id", "step"], set_=row))
        for step, report in self._evaluations.items():
            its_step = FinetuneStep.job_id == job_id, FinetuneStep.step == step
            values = {"valid_loss": report.loss, "valid_accuracy": report.accuracy}
            session.execute(update(FinetuneStep).where(*its_step).values(values))
        for event in self._events:
            if event.is_metrics and event.data is not None:
                training_events.record_metrics(session, job_id, event.message, event.data)
            else:
                training_events.record(session, job_id, event.message, level=event.level, data=event.data)
        if self._total:  # it has started
            tracking.begin(session, job_id, self._trackers)
        plan = update(FinetunePlan).where(FinetunePlan.job_id == job_id)
        spent = {"seconds": self._spent.seconds, "device_seconds": self._spent.device_seconds}
        session.execute(plan.values(estimated_finish=self._estimate, **spent))

    def _record_usage(self, session: Session) -> None:
        """Count the device seconds since the last write, and the tokens of epochs that no earlier step has reached.

        A step that is trained again costs seconds, and no tokens.
        """
        job, plan = self._claim.job, session.get_one(FinetunePlan, self._claim.job.id)
        reached = session.scalar(select(func.max(FinetuneStep.epoch)).where(FinetuneStep.job_id == job.id)) or 0.0
        epoch = max([reached, *(row["epoch"] for row in self._steps.values())])
        tokens = round(plan.tokens * epoch) - round(plan.tokens * reached)
        seconds = max(self._spent.device_seconds - plan.device_seconds, 0.0)
        if tokens or seconds:
            key = UsageKey(job.project_id, job.key_id or "", self._base, TRAINING)
            minutes.record(session, key, Amounts(input_tokens=tokens, device_seconds=seconds))

    def reset(self) -> None:
        """Forget what was gathered: it is committed."""
        self._steps.clear()
        self._evaluations.clear()
        self._events.clear()
        self._flushed = time.monotonic()

    def _metrics(self, step: int, text: str, data: dict[str, Any]) -> None:
        metrics = {"step": step, "total_steps": self._total, **data}
        self._events.append(_Event(text, data=metrics, is_metrics=True))
