"""Clients that repeat requests, of two projects with the same requests, and clear their cache now and then.

    answers   chats, completions and responses in the terms of the answer cache; the same one twice at once, too
    vectors   of one text or two, as numbers or packed
    clearing  DELETE /v1/cache

All answers are recorded; `tests.support.cache_oracle` judges them.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos.journal import Journal
from tests.support.cache_oracle import CHAT, RESPONSE, TEXT, Anew, Clearing, Embedded, Recalled, floats
from tests.support.stub_engine import STAMP
from tests.support.system import CACHED_MODEL, EMBED_MODEL, pause

if TYPE_CHECKING:
    from tests.chaos.load import Client

_URLS = (CHAT, TEXT, RESPONSE)
PROMPTS = tuple(f"Recall the {word} {STAMP}" for word in ("apple", "pear", "plum"))
TEXTS = tuple(f"a text about the {word} that is embedded!" for word in ("apple", "pear", "plum", "quince"))
#: Longer than any clock is moved, so that nothing expires.
_TERMS: tuple[Any, ...] = (True, {"ttl": 2_000_000})
#: Steps after which it clears, should chance not have had it do so.
_LONGEST_EPOCH = 10


@dataclass(slots=True)
class Repeater:
    """The requests of one project."""

    client: "Client"
    journal: Journal
    rng: random.Random
    project: str
    answers: list[Recalled] = field(default_factory=list)
    vectors: list[Embedded] = field(default_factory=list)
    clearings: list[Clearing] = field(default_factory=list)
    steps: int = 0  # since it was cleared
    busy: bool = False
    written_seconds: float = 1.0  # until an answer that was computed is in the cache

    def step(self) -> None:
        """Take one step. Raises OpenAIError."""
        self.busy = True
        try:
            chores = self._one, self._twice, self._embed, self.clear
            [chore] = self.rng.choices(chores, (6, 1, 5, 0.7)) if self.steps < _LONGEST_EPOCH else [self.clear]
            self.steps += 1
            chore()
        finally:
            self.busy = False

    def await_idle(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.busy:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    def all_anew(self, seconds: float) -> Anew:
        """Clear the cache, and ask for some of everything until all of it is there, or so long. Raises OpenAIError."""
        told, deadline = Anew(self._cleared(), [self._answers()], [self._all_vectors()]), time.monotonic() + seconds
        while len(told.answers) < 2 or (not told.is_whole and time.monotonic() < deadline):
            pause(self.written_seconds)
            told = Anew(told.clearing, [*told.answers, self._answers()], [*told.vectors, self._all_vectors()])
        return told

    def _answers(self) -> list[Recalled]:
        return [self._ask(url, PROMPTS[0]) for url in _URLS]

    def _all_vectors(self) -> list[Embedded]:
        return [self._vectors(TEXTS[:1], packed=True)]

    def clear(self) -> None:
        self.clearings.append(self._cleared())
        self.steps = 0

    def _cleared(self) -> Clearing:
        began = time.monotonic()
        self.client.sdk.delete("/cache", cast_to=object)
        self.journal.note(f"{self.project} has cleared its cache")
        return Clearing(self.project, began, time.monotonic())

    def _one(self) -> None:
        self.answers.append(self._ask(self.rng.choice(_URLS), self.rng.choice(PROMPTS)))

    def _twice(self) -> None:
        url, prompt = self.rng.choice(_URLS), self.rng.choice(PROMPTS)
        with ThreadPoolExecutor(2) as threads:
            self.answers += threads.map(lambda _: self._ask(url, prompt), range(2))

    def _embed(self) -> None:
        texts = self.rng.sample(TEXTS, 1 if self.rng.random() < 0.7 else 2)
        self.vectors.append(self._vectors(texts, packed=self.rng.random() < 0.5))

    def _ask(self, url: str, prompt: str) -> Recalled:
        began = time.monotonic()
        said = self._said(url, prompt, {"cache": self.rng.choice(_TERMS)})
        text, cached = said
        return Recalled(self.project, url, prompt, began, time.monotonic(), text, cached)

    def _said(self, url: str, prompt: str, extra: dict[str, Any]) -> tuple[str, bool]:
        """Return the text, and whether the answer says that it is from the cache."""
        sdk, facts = self.client.sdk, {"model": CACHED_MODEL, "temperature": 0, "extra_body": extra}
        made: Any
        if url == CHAT:
            made = sdk.chat.completions.create(messages=[{"role": "user", "content": prompt}], **facts)
            text = made.choices[0].message.content
        elif url == TEXT:
            made = sdk.completions.create(prompt=prompt, **facts)
            text = made.choices[0].text
        else:
            made = sdk.responses.create(input=prompt, store=False, **facts)
            text = made.output_text
        return str(text), bool((made.model_extra or {}).get("cached"))

    def _vectors(self, texts: Sequence[str], *, packed: bool) -> Embedded:
        began = time.monotonic()
        asked: Any = texts[0] if len(texts) == 1 else list(texts)
        made = self.client.sdk.embeddings.create(
            model=EMBED_MODEL, input=asked, encoding_format="base64" if packed else "float"
        )
        details = (made.usage.model_extra or {}).get("prompt_tokens_details") or {}
        told = tuple(floats(one.embedding) for one in made.data)
        cached = int(details.get("cached_tokens") or 0)
        told_of = self.project, tuple(texts), began, time.monotonic(), told, made.usage.prompt_tokens, cached
        return Embedded(*told_of)
