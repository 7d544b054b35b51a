"""Responses in the background, beside the batches of a run: some are always open, each under a key of its own.

Each is a job with a single line, so small that the worker which runs it finishes it too.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import openai
from openai.types.responses import Response

from tests.chaos.journal import Journal
from tests.support.oracle import ANSWERED, Asked
from tests.support.system import pause

if TYPE_CHECKING:
    from tests.chaos.load import Client


@dataclass(slots=True)
class Askers:
    """Background responses of the clients, and all that they were shown of each, oldest first."""

    client: "Client"
    journal: Journal
    rng: random.Random
    model: str
    judged: bool
    width: int
    moved: Callable[[], None]
    asked: list[Asked] = field(default_factory=list)
    seen: dict[str, list[Response]] = field(default_factory=dict)

    @property
    def open(self) -> list[Asked]:
        return [one for one in self.asked if not self._ended(one)]

    def step(self, *, feeding: bool) -> None:
        """Play one round. Raises OpenAIError."""
        if feeding and len(self.open) < self.width:
            self._ask()
        for one in [one for one in self.open if one.id]:
            shown = self.client.look(lambda sdk, one=one: sdk.responses.retrieve(one.id))
            if shown is not None:
                self._see(one, shown)

    def await_ended(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.open:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    def _ask(self) -> None:
        key = f"response-{len(self.asked):04d}"
        one = Asked(key, self.model, f"Tell {self.rng.getrandbits(48):012x} to {key}", judged=self.judged)
        self.asked.append(one)
        made = self.client.sdk.responses.create(
            model=one.model, input=one.prompt, background=True, max_output_tokens=16,
            metadata={"key": key}, extra_headers={"Idempotency-Key": key},
        )  # fmt: skip
        one.id = made.id
        self.journal.note(f"{key} is {one.id}")
        if self.rng.random() < 0.1:
            one.cancelled = True
            self._see(one, self.client.sdk.responses.cancel(one.id))

    def _see(self, one: Asked, shown: Response) -> None:
        seen = self.seen.setdefault(one.key, [])
        if seen and seen[-1] == shown:
            return
        seen.append(shown)
        self.moved()

    def _ended(self, one: Asked) -> bool:
        seen = self.seen.get(one.key)
        return bool(seen) and seen[-1].status in ANSWERED


def keys_of(client: openai.OpenAI) -> list[str]:
    """Return the keys of all jobs that are responses, once for each job."""
    found: list[str] = []
    after = ""
    while True:
        page = client.get(f"/jobs?kind=response&limit=100{after}", cast_to=object)
        assert isinstance(page, dict)
        found += [str(job["idempotency_key"]) for job in page["data"]]
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"
