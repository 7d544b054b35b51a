"""Clients that evaluate the stub's model, beside the batches of a run: they cancel some runs, and delete some evals."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai

from tests.chaos.journal import Journal
from tests.support.evaluated import Evaluation
from tests.support.system import pause

if TYPE_CHECKING:
    from tests.chaos.load import Client

_ITEMS = (20, 120)
_JUDGED, _CANCELLED, _DELETED = 0.3, 0.15, 0.1  # shares of the runs
_LATER = (0.0, 4.0)  # seconds after which a run is cancelled or deleted


@dataclass(slots=True)
class Evaluators:
    """The runs of these clients. `width` runs are kept open."""

    client: "Client"
    journal: Journal
    rng: random.Random
    model: str
    width: int
    moved: Callable[[], None]
    evaluations: list[Evaluation] = field(default_factory=list)
    busy: bool = False
    _due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    @property
    def open(self) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if not evaluation.ended]

    def step(self, *, feeding: bool) -> None:
        """Create a run if there are too few, and look at all that are open. Raises OpenAIError."""
        self.busy = True
        try:
            for due in [due for due in self._due if due[0] <= time.monotonic() or not feeding]:
                self._due.remove(due)
                due[1]()
            if feeding and len(self.open) < self.width:
                self._submit()
            for evaluation in [evaluation for evaluation in self.open if evaluation.id]:
                self._look(evaluation)
        finally:
            self.busy = False

    def await_ended(self, seconds: float) -> bool:
        """Return whether all runs end in time."""
        deadline = time.monotonic() + seconds
        while self.busy or self.open or self._due:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    def _submit(self) -> None:
        right = [self.rng.random() < 0.5 for _ in range(self.rng.randint(*_ITEMS))]
        key = f"eval-{len(self.evaluations):03d}"
        evaluation = Evaluation(key, right, is_judged=self.rng.random() < _JUDGED)
        self.evaluations.append(evaluation)
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
        chance, later = self.rng.random(), time.monotonic() + self.rng.uniform(*_LATER)
        if chance < _CANCELLED:
            self._due.append((later, lambda: self._cancel(evaluation)))
        elif chance < _CANCELLED + _DELETED:
            self._due.append((later, lambda: self._delete(evaluation)))

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

    def _look(self, evaluation: Evaluation) -> None:
        run = self.client.look(lambda sdk: sdk.evals.runs.retrieve(evaluation.id, eval_id=evaluation.eval_id))
        if run is not None and run.status != evaluation.status:
            evaluation.status = run.status
            self.journal.note(f"{evaluation.key} {run.status}")
            self.moved()
