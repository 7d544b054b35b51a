"""Clients that keep pipelines open, beside the batches of a run: questions are answered, collected, graded, promoted.

answer: a batch ─▶ rows: a version of a dataset, of its answers ─▶ check: a run of an eval over the rows
                                                               └─▶ promote: an alias, by a gate that it passes
"""

from dataclasses import dataclass, field
from typing import Any

import openai

from tests.chaos.job_clients import JobClients
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.promotion_requests import gate, minimum
from tests.support.system import CANARY_MODEL

_LINES = (20, 80)
_CANCELLED = 0.15  # the share of the pipelines
_LATER = (0.0, 4.0)  # seconds after which one is cancelled
_ITEMS = 20  # of the gate
_LIVE = ("", "in_progress", "cancelling")


@dataclass(slots=True)
class KnownPipeline:
    """A pipeline as its client knows it."""

    key: str
    lines: int
    id: str = ""
    eval_id: str = ""
    status: str = ""
    cancelled: bool = False
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status not in _LIVE


@dataclass
class PipelineClients(JobClients[KnownPipeline]):
    """The pipelines of these clients."""

    model: str = field(kw_only=True)

    @property
    def keys(self) -> list[str]:
        """Return the keys of the batches that the pipelines have made."""
        return [pipeline.key for pipeline in self.jobs if pipeline.steps.get("answer", {}).get("job_id")]

    def submit(self) -> None:
        pipeline = KnownPipeline(f"pipe-{len(self.jobs):03d}", self.rng.randint(*_LINES))
        self.jobs.append(pipeline)
        key, sdk, once = pipeline.key, self.client.sdk, {"Idempotency-Key": pipeline.key}
        names = [f"{key}-{n:04d}" for n in range(pipeline.lines)]
        lines = jsonl([chat_line(name, f"Say {name}", model=self.model) for name in names])
        file = sdk.files.create(file=(f"{key}.jsonl", lines), purpose="batch", extra_headers=once)
        self._post("/datasets", once, name=key)
        config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
        criterion: Any = {"type": "string_check", "name": "asked", "operation": "ilike", "reference": key}
        criterion["input"] = "{{ item.custom_id }}"
        made = sdk.evals.create(name=key, data_source_config=config, testing_criteria=[criterion], extra_headers=once)
        batch = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        rows = {"dataset": key, "sources": [{"type": "batch", "batch_id": "{{answer.id}}"}]}
        graded = {"type": "jsonl", "source": {"type": "file_id", "id": "{{rows.reference}}"}}
        self._post("/aliases", once, id=key, model=self.model)
        items = jsonl([{"item": {"custom_id": key, "question": f"Who takes case {n}!"}} for n in range(_ITEMS)])
        own = {"Idempotency-Key": f"{key}-items"}
        items_file = sdk.files.create(file=("items.jsonl", items), purpose="evals", extra_headers=own)
        target = {"type": "alias", "id": key, "model": CANARY_MODEL}
        promoted = {"target": target, "gates": [gate(made.id, items_file.id, minimum(0.9), model=key)]}
        steps = [
            {"name": "promote", "kind": "promotion", "request": promoted, "after": ["check"]},
            {"name": "check", "kind": "eval_run", "request": {"eval_id": made.id, "data_source": graded}},
            {"name": "rows", "kind": "dataset", "request": rows},
            {"name": "answer", "kind": "batch", "request": batch | {"metadata": {"key": key}}},
        ]
        pipeline.eval_id = made.id
        pipeline.id = self._post("/pipelines", once, name=key, steps=steps)["id"]
        self.journal.note(f"{key} is {pipeline.id}: {pipeline.lines} lines")
        self.moved()
        if self.rng.random() < _CANCELLED:
            self.later(self.rng.uniform(*_LATER), lambda: self._cancel(pipeline))

    def look(self, job: KnownPipeline) -> None:
        shown: Any = self.client.look(lambda sdk: sdk.get(f"/pipelines/{job.id}", cast_to=object))
        if shown is None:
            return
        if shown["status"] != job.status:
            self.journal.note(f"{job.key} {shown['status']}")
            self.moved()
        job.steps = {step["name"]: step for step in shown["steps"]}
        job.status = shown["status"]

    def _post(self, path: str, once: dict[str, str], **body: Any) -> Any:
        return self.client.sdk.post(path, cast_to=object, body=body, options={"headers": once})

    def _cancel(self, pipeline: KnownPipeline) -> None:
        pipeline.cancelled = True
        try:
            self.client.sdk.post(f"/pipelines/{pipeline.id}/cancel", cast_to=object)
        except openai.ConflictError:  # it has ended
            return
        self.journal.note(f"{pipeline.key} is to be cancelled")
