"""Clients that train models, beside the batches of a run, and ask for what came of it.

    tuner   keeps some fine-tuning jobs open, each under a key of its own; pauses some for a while, cancels some
    asker   asks for tuned models, checkpoints and their base, in chats and in small batches

The trainer is a stand-in whose adapters are texts of the job's seed and the step, and the engine answers with the text
of the adapter that it has loaded. So every answer says by itself which adapter gave it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from tests.chaos.job_clients import JobClients
from tests.support import tuning_oracle
from tests.support.idle_workers import BASE
from tests.support.tuning_oracle import Answered, Tuning

_PAUSED_SECONDS = (1.0, 4.0)
_LINES = 8  # of a batch that asks for one model
_OPEN_BATCHES = 2


@dataclass
class Tuners(JobClients[Tuning]):
    """The fine-tuning jobs of these clients, and everything that was answered to them."""

    answers: list[Answered] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # of all batches
    batches: dict[str, str] = field(default_factory=dict)  # open ones: the model that each asks for
    _asked: int = 0

    @property
    def is_idle(self) -> bool:
        return super().is_idle and not self.batches

    def ask(self, *, feeding: bool) -> None:
        """Ask for one model, and look at the batches that are open. Raises OpenAIError."""
        self._look_at_batches()
        models = self.models
        if not feeding or not models:
            return
        model = self.rng.choice([*models, BASE])
        if self.rng.random() < 0.25 and len(self.batches) < _OPEN_BATCHES:
            self._submit_batch(model)
        else:
            self._chat(model)

    @property
    def models(self) -> list[str]:
        """Return the names of all models and checkpoints that the clients have seen."""
        return [name for tuning in self.jobs for name in tuning.models]

    @property
    def results(self) -> list[str]:
        """Return the names of the models of jobs that have succeeded, without their checkpoints."""
        return [tuning.result for tuning in self.jobs if tuning.result]

    # -- the tuner

    def submit(self) -> None:
        number = len(self.jobs)
        tuning = Tuning(f"tuning-{number:03d}", seed=self.rng.randrange(1, 1_000_000))
        self.jobs.append(tuning)
        key = {"Idempotency-Key": tuning.key}
        sdk = self.client.sdk
        file = sdk.files.create(
            file=(f"{tuning.key}.jsonl", tuning_oracle.ROWS), purpose="fine-tune", extra_headers=key
        )
        hyperparameters: Any = {"n_epochs": tuning_oracle.EPOCHS, "batch_size": tuning_oracle.BATCH}
        made = sdk.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            seed=tuning.seed,
            suffix=tuning.key,
            metadata={"key": tuning.key},
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            extra_headers=key,
        )
        tuning.id = made.id
        self.journal.note(f"{tuning.key} is {tuning.id}")
        self.moved()
        chance = self.rng.random()
        if chance < 0.15:
            self.later(self.rng.uniform(0, 10), lambda: self._cancel(tuning))
        elif chance < 0.4:
            self.later(self.rng.uniform(2, 10), lambda: self._pause(tuning))

    def _pause(self, tuning: Tuning) -> None:
        if self._steer(tuning, "pause"):
            self.later(self.rng.uniform(*_PAUSED_SECONDS), lambda: self._resume(tuning))

    def _resume(self, tuning: Tuning) -> None:
        self._steer(tuning, "resume")

    def _cancel(self, tuning: Tuning) -> None:
        tuning.cancelled = True
        self._steer(tuning, "cancel")

    def _steer(self, tuning: Tuning, verb: str) -> bool:
        """Return whether the server took it; a job that has ended refuses."""
        try:
            getattr(self.client.sdk.fine_tuning.jobs, verb)(tuning.id)
        except (openai.ConflictError, openai.BadRequestError):
            return False
        self.journal.note(f"{tuning.key}: {verb}")
        return True

    def look(self, job: Tuning) -> None:
        shown = self.client.look(lambda sdk: sdk.fine_tuning.jobs.retrieve(job.id))
        page = self.client.look(lambda sdk: sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=100).data)
        if shown is not None:
            self._see(job, shown)
        for checkpoint in page or ():
            if checkpoint.fine_tuned_model_checkpoint not in job.models:
                job.models[checkpoint.fine_tuned_model_checkpoint] = checkpoint.step_number
                self.moved()

    def _see(self, tuning: Tuning, job: FineTuningJob) -> None:
        if job.status != tuning.status:
            self.journal.note(f"{tuning.key} {job.status}")
            self.moved()
        tuning.status, tuning.ended = job.status, job.finished_at is not None
        if job.fine_tuned_model:
            tuning.models[job.fine_tuned_model], tuning.result = tuning_oracle.STEPS, job.fine_tuned_model

    # -- the asker

    def _chat(self, model: str) -> None:
        prompt = self._prompt()
        answer = self.client.sdk.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=16
        )
        self._heard(model, answer.model, prompt, answer.choices[0].message.content or "")

    def _submit_batch(self, model: str) -> None:
        key = f"tuned-batch-{len(self.keys):03d}"
        self.keys.append(key)
        lines = []
        for n in range(_LINES):
            messages = [{"role": "user", "content": self._prompt()}]
            body = {"model": model, "messages": messages, "max_tokens": 16}
            lines.append({"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body})
        data, headers = b"".join(json.dumps(line).encode() + b"\n" for line in lines), {"Idempotency-Key": key}
        file = self.client.sdk.files.create(file=(f"{key}.jsonl", data), purpose="batch", extra_headers=headers)
        batch = self.client.sdk.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"key": key},
            extra_headers=headers,
        )
        self.batches[batch.id] = model
        self.journal.note(f"{key} is {batch.id}: {_LINES} lines for {model}")

    def _look_at_batches(self) -> None:
        for batch_id, model in list(self.batches.items()):
            batch = self.client.look(lambda sdk, batch_id=batch_id: sdk.batches.retrieve(batch_id))
            if batch is None or batch.status in ("validating", "in_progress", "finalizing"):
                continue
            if batch.status != "completed" or not batch.output_file_id or batch.error_file_id:
                self.journal.violation(f"{batch_id} for {model} is {batch.status}: {batch.request_counts}")
            else:
                self._read(model, self.client.sdk.files.content(batch.output_file_id).content)
            del self.batches[batch_id]
            self.moved()

    def _read(self, model: str, data: bytes) -> None:
        lines = [json.loads(line) for line in data.splitlines()]
        if sorted(line["custom_id"] for line in lines) != sorted(map(str, range(_LINES))):
            self.journal.violation(f"a batch for {model} has the lines {[line['custom_id'] for line in lines]}")
        for line in lines:
            body = line["response"]["body"]
            self._heard(model, body["model"], f"line {line['custom_id']}", body["choices"][0]["message"]["content"])

    def _heard(self, model: str, named: str, prompt: str, text: str) -> None:
        self.answers.append(Answered(model, named, prompt, text))
        self.moved()

    def _prompt(self) -> str:
        self._asked += 1
        return f"Say {self.rng.getrandbits(48):012x} to question {self._asked}"
