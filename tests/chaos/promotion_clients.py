"""Clients that promote, beside the batches of a run: the alias `release`, two candidates at one moment, and stages.

    pair     two promotions of the alias, each by a gate that it passes or fails; some are cancelled
    stage    a tuned model is forced into production
    batches  ask the alias, each by the one model that it stood for when the batch was planned

Nothing but these promotions moves the alias.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import openai

from tests.chaos.job_clients import JobClients
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.promotion_requests import gate, minimum
from tests.support.system import CACHED_MODEL, CANARY_MODEL, MODEL

ALIAS: Final = "release"
CREATION: Final = "release-alias"  # the reason of its first move
CANDIDATES: Final = (MODEL, CACHED_MODEL, CANARY_MODEL)
_ITEMS: Final = 20
_PASSING, _STAGED, _CANCELLED = 0.7, 0.3, 0.1  # shares of the promotions
_LATER = (0.0, 4.0)  # seconds after which one is cancelled
_LINES = (20, 60)
_LIVE = ("", "in_progress", "cancelling")
_BATCH_LIVE = ("", "validating", "in_progress", "finalizing")


@dataclass(slots=True)
class KnownPromotion:
    """A promotion as its client knows it. `passes` says whether its gate does; `pair` names the two of one moment."""

    key: str
    candidate: str
    passes: bool = True
    pair: str = ""
    id: str = ""
    status: str = ""
    code: str | None = None
    cancelled: bool = False

    @property
    def is_staged(self) -> bool:
        return not self.pair

    @property
    def ended(self) -> bool:
        return self.status not in _LIVE


@dataclass
class PromotionClients(JobClients[KnownPromotion]):
    """The promotions of these clients. `tuned` lists the models that may come into production."""

    tuned: Callable[[], list[str]] = field(kw_only=True)
    pairs: int = 0
    _evals: dict[bool, str] = field(default_factory=dict)
    _file: str = ""

    @property
    def is_set_up(self) -> bool:
        """Return whether there is an alias to ask."""
        return bool(self._file)

    def submit(self) -> None:
        if not self.is_set_up:
            self._set_up()
        staged = {promotion.candidate for promotion in self.jobs if promotion.is_staged}
        if (models := [model for model in self.tuned() if model not in staged]) and self.rng.random() < _STAGED:
            self._stage(models[0])
        elif not any(promotion.pair for promotion in self.open):
            self._promote_two()

    def _set_up(self) -> None:
        """Create the alias, the evals and their items, however often it takes."""
        sdk = self.client.sdk
        self._post("/aliases", CREATION, id=ALIAS, model=MODEL, reason=CREATION)
        for passes, word in ((True, "case"), (False, "an answer that no model gives")):
            key = f"{ALIAS}-passes-{passes}"
            criterion: Any = {"type": "string_check", "name": "words", "operation": "ilike", "reference": word}
            criterion["input"] = "{{ item.question }} {{ sample.output_text }}"
            config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
            made = sdk.evals.create(
                name=key, data_source_config=config, testing_criteria=[criterion],
                extra_headers={"Idempotency-Key": key},
            )  # fmt: skip
            self._evals[passes] = made.id
        items = jsonl([{"item": {"question": f"Where does case {n} belong!"}} for n in range(_ITEMS)])
        once = {"Idempotency-Key": f"{ALIAS}-items"}
        self._file = sdk.files.create(file=("items.jsonl", items), purpose="evals", extra_headers=once).id

    def _promote_two(self) -> None:
        """Promote the two models for which the alias does not stand, at one moment."""
        alias: Any = self.client.sdk.get(f"/aliases/{ALIAS}", cast_to=object)
        pair = f"pair-{self.pairs:03d}"
        self.pairs += 1
        two = [
            KnownPromotion(f"{pair}-{candidate}", candidate, self.rng.random() < _PASSING, pair)
            for candidate in CANDIDATES
            if candidate != alias["model"]
        ]
        self.jobs += two
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(self._promote, two))
        for promotion in two:
            self._begin(promotion)

    def _promote(self, promotion: KnownPromotion) -> None:
        asked = gate(self._evals[promotion.passes], self._file, minimum(0.9), model=ALIAS)
        target = {"type": "alias", "id": ALIAS, "model": promotion.candidate}
        body = {"target": target, "gates": [asked], "reason": promotion.key}
        promotion.id = self._post("/promotions", promotion.key, **body)["id"]

    def _stage(self, model: str) -> None:
        promotion = KnownPromotion(f"stage-{len(self.jobs):03d}", model)
        self.jobs.append(promotion)
        target = {"type": "stage", "id": model}
        body = {"target": target, "force": True, "reason": promotion.key}
        promotion.id = self._post("/promotions", promotion.key, **body)["id"]
        self._begin(promotion)

    def _begin(self, promotion: KnownPromotion) -> None:
        self.journal.note(f"{promotion.key} is {promotion.id}: to {promotion.candidate}")
        self.moved()
        if self.rng.random() < _CANCELLED:
            self.later(self.rng.uniform(*_LATER), lambda: self._cancel(promotion))

    def _cancel(self, promotion: KnownPromotion) -> None:
        promotion.cancelled = True
        try:
            self.client.sdk.post(f"/promotions/{promotion.id}/cancel", cast_to=object)
        except openai.ConflictError:  # it has ended
            return
        self.journal.note(f"{promotion.key} is to be cancelled")

    def look(self, job: KnownPromotion) -> None:
        shown: Any = self.client.look(lambda sdk: sdk.get(f"/promotions/{job.id}", cast_to=object))
        if shown is not None and shown["status"] != job.status:
            job.status, job.code = shown["status"], (shown["error"] or {}).get("code")
            self.journal.note(f"{job.key} {job.status} {job.code or ''}")
            self.moved()

    def _post(self, path: str, key: str, **body: Any) -> Any:
        return self.client.sdk.post(path, cast_to=object, body=body, options={"headers": {"Idempotency-Key": key}})


@dataclass(slots=True)
class RoutedBatch:
    """A batch for the alias, as its client knows it."""

    key: str
    prompts: dict[str, str]
    id: str = ""
    status: str = ""

    @property
    def ended(self) -> bool:
        return self.status not in _BATCH_LIVE


@dataclass
class RoutedBatches(JobClients[RoutedBatch]):
    """Batches for the alias, once it `is_there`."""

    is_there: Callable[[], bool] = field(kw_only=True)

    def submit(self) -> None:
        if not self.is_there():
            return
        key = f"routed-{len(self.jobs):03d}"
        names = [f"{key}-{n:03d}" for n in range(self.rng.randint(*_LINES))]
        batch = RoutedBatch(key, {name: f"Say {self.rng.getrandbits(48):012x} to {name}" for name in names})
        self.jobs.append(batch)
        lines = jsonl([chat_line(name, prompt, model=ALIAS) for name, prompt in batch.prompts.items()])
        sdk, once = self.client.sdk, {"Idempotency-Key": key}
        file = sdk.files.create(file=(f"{key}.jsonl", lines), purpose="batch", extra_headers=once)
        batch.id = sdk.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"key": key},
            extra_headers=once,
        ).id
        self.journal.note(f"{key} is {batch.id}: {len(names)} lines for {ALIAS}")
        self.moved()

    def look(self, job: RoutedBatch) -> None:
        batch = self.client.look(lambda sdk: sdk.batches.retrieve(job.id))
        if batch is not None and batch.status != job.status:
            job.status = batch.status
            self.journal.note(f"{job.key} {batch.status}")
            self.moved()
