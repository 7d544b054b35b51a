"""Clients that evaluate the stub's model, beside the batches of a run: they cancel some runs, and delete some evals."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.chaos.job_clients import JobClients
from tests.support.eval_oracle import Evaluation

_ITEMS = (20, 120)
_JUDGED, _CANCELLED, _DELETED = 0.3, 0.15, 0.1  # shares of the runs
_LATER = (0.0, 4.0)  # seconds after which a run is cancelled or deleted


@dataclass
class Evaluators(JobClients[Evaluation]):
    """The runs of evals of these clients."""

    model: str = field(kw_only=True)

    def submit(self) -> None:
        right = [self.rng.random() < 0.5 for _ in range(self.rng.randint(*_ITEMS))]
        key = f"eval-{len(self.jobs):03d}"
        evaluation = Evaluation(key, right, is_judged=self.rng.random() < _JUDGED)
        self.jobs.append(evaluation)
        sdk, once = self.client.sdk, {"Idempotency-Key": key}
        config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
        criteria: Any = evaluation.criteria(self.model)
        made = sdk.evals.create(name=key, data_source_config=config, testing_criteria=criteria, extra_headers=once)
        source: Any = {
            "type": "completions",
            "model": self.model,
            "source": {"type": "file_content", "content": evaluation.items()},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]},
        }
        run = sdk.evals.runs.create(made.id, name=key, data_source=source, extra_headers=once)
        evaluation.eval_id, evaluation.id = made.id, run.id
        self.journal.note(f"{key} is {run.id}: {len(right)} items{', judged' * evaluation.is_judged}")
        self.moved()
        chance, seconds = self.rng.random(), self.rng.uniform(*_LATER)
        if chance < _CANCELLED:
            self.later(seconds, lambda: self._cancel(evaluation))
        elif chance < _CANCELLED + _DELETED:
            self.later(seconds, lambda: self._delete(evaluation))

    def _cancel(self, evaluation: Evaluation) -> None:
        evaluation.cancelled = True
        try:
            self.client.sdk.evals.runs.cancel(evaluation.id, eval_id=evaluation.eval_id)
        except openai.ConflictError:  # it has ended
            return
        self.journal.note(f"{evaluation.key} is to be cancelled")

    def _delete(self, evaluation: Evaluation) -> None:
        with suppress(openai.NotFoundError):  # an earlier try deleted it, and its answer was lost
            self.client.sdk.evals.delete(evaluation.eval_id)
        evaluation.deleted = True
        self.journal.note(f"{evaluation.key} is deleted")
        self.moved()

    def look(self, job: Evaluation) -> None:
        run = self.client.look(lambda sdk: sdk.evals.runs.retrieve(job.id, eval_id=job.eval_id))
        if run is not None and run.status != job.status:
            job.status = run.status
            self.journal.note(f"{job.key} {run.status}")
            self.moved()
