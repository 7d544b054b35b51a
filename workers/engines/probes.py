"""Probes: chats that the trainer and the engine must read and continue alike, before a tuned model is served.

    trainer ── ten chats, tokens, greedy continuations, log-probabilities ──▶ probes.json beside the adapter
    engine ─── loads the adapter ──▶ scores the same ──▶ compare ──▶ served, served with a warning, or `failed_probe`

A chat template that the engine fills in otherwise, or weights that it applies otherwise, show here and not in answers.
Trainer and engine may compute in different dtypes. The trainer measures how far the log-probabilities of the same
weights differ between two of them: a difference of that size says nothing about the model.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import msgspec

from workers.engines.port import Adapter, AdapterRefused, Passage, Score

log = logging.getLogger(__name__)
FILE: Final = "probes.json"
CONTINUATION: Final = 16  # tokens that the trainer continues each chat with
TOLERANCE: Final = 0.05  # nats a token
BASE_FACTOR: Final = 2.0  # of what the base model differs by between trainer and engine
DTYPE_FACTOR: Final = 3.0  # of what the tuned model differs by between two dtypes in the trainer
#: Nats a token up to which a model is served with a warning. Adapters of another base differ by more.
REFUSED: Final = 0.5

Body = dict[str, Any]
#: Score passages with an adapter, or without one.
Scorer = Callable[[Sequence[Passage], Adapter | None], Awaitable[list[Score]]]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A chat as the trainer reads it: tokens, greedy continuation, and the log-probability of each continued token.

    `base_logprobs` are those that the trainer's base model gives to the same continuation. Those of a whole model
    are what its own weights give in bfloat16: engines may compute in it. `other_logprobs` are those of the tuned model
    in the dtype that the trainer does not compute in, float32 or bfloat16; none where they are the `base_logprobs`.
    """

    messages: list[Body]
    tools: list[Body] | None = None
    token_ids: tuple[int, ...]
    continuation: tuple[int, ...]
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]
    other_logprobs: tuple[float, ...] = ()


class ProbeComparison(msgspec.Struct, frozen=True):
    """The mean difference between trainer and engine, in nats a token, and the one that is allowed.

    `misread` says where the engine reads a chat as other tokens; then nothing else was compared.
    """

    difference: float
    allowed: float
    misread: str = ""

    @property
    def is_refused(self) -> bool:
        """Return whether the model is not to be served."""
        return bool(self.misread) or self.difference > max(self.allowed, REFUSED)

    def __str__(self) -> str:
        return self.misread or (
            f"log-probabilities differ by {self.difference:.3f} nats a token between trainer and engine; "
            f"{self.allowed:.3f} are allowed, and up to {max(self.allowed, REFUSED):g} with a warning."
        )


def write(folder: Path, probes: Sequence[Probe]) -> None:
    """Write the probes beside the adapter's other files."""
    (folder / FILE).write_bytes(msgspec.json.encode(probes))


def read(folder: Path) -> list[Probe]:
    """Return the probes of an adapter; none where its trainer wrote none."""
    file = folder / FILE
    return msgspec.json.decode(file.read_bytes(), type=list[Probe]) if file.is_file() else []


def dtype_difference(probes: Sequence[Probe]) -> float:
    """Return how far the log-probabilities of the same weights differ between two dtypes, in nats a token."""
    measured = [probe for probe in probes if probe.other_logprobs]
    other = [Score(probe.token_ids, probe.other_logprobs) for probe in measured]
    return _mean_difference([probe.logprobs for probe in measured], other)


async def check(adapter: Adapter, score: Scorer) -> None:
    """Compare a loaded adapter with what its trainer computed. An operator may have it served without.

    Raises:
        AdapterRefused: The engine reads a chat as other tokens, or continues it otherwise.
    """
    if adapter.accepted or not (probes := read(adapter.folder)):
        return
    passages = [Passage(probe.messages, probe.tools, probe.continuation) for probe in probes]
    tuned = await score(passages, adapter)
    exact = [Score(probe.token_ids, probe.logprobs) for probe in probes]
    base = exact if adapter.whole else await score(passages, None)
    comparison = compare(probes, tuned, base)
    if comparison.is_refused:
        raise AdapterRefused(f"The tuned model failed its probe: {comparison}", failed_probe=True)
    if comparison.difference > comparison.allowed:
        log.warning("adapter_differs", extra={"adapter": adapter.name, "reason": str(comparison)})


def compare(probes: Sequence[Probe], tuned: Sequence[Score], base: Sequence[Score]) -> ProbeComparison:
    """Return how far the engine's scores differ from the trainer's, and how far they may.

    Without `base` scores, and without log-probabilities in another dtype, the difference may be `TOLERANCE`.
    """
    for number, (probe, score) in enumerate(zip(probes, tuned, strict=True)):
        if probe.token_ids != score.token_ids:
            at = next(_differences(probe.token_ids, score.token_ids))
            return ProbeComparison(
                math.inf, 0.0, f"the engine reads chat {number} as other tokens, from token {at} on."
            )
    theirs = _mean_difference([probe.logprobs for probe in probes], tuned)
    usual = _mean_difference([probe.base_logprobs for probe in probes], base) if base else 0.0
    return ProbeComparison(theirs, max(BASE_FACTOR * usual, DTYPE_FACTOR * dtype_difference(probes), TOLERANCE))


def _differences(ours: Sequence[int], theirs: Sequence[int]) -> Iterator[int]:
    pairs = zip(ours, theirs, strict=False)
    yield from (at for at, (left, right) in enumerate(pairs) if left != right)
    yield min(len(ours), len(theirs))


def _mean_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Score]) -> float:
    """Return the mean absolute difference of all tokens; infinite where one of them is not a number."""
    pairs = [
        pair
        for logprobs, score in zip(ours, theirs, strict=True)
        for pair in zip(logprobs, score.logprobs, strict=True)
    ]
    difference = fmean(abs(left - right) for left, right in pairs) if pairs else 0.0
    return math.inf if math.isnan(difference) else difference


# ── the ten chats: without and with a system message, several turns, tools ──

_WEATHER: Final[Body] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Return the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _chat(*texts: str, system: str | None = None) -> list[Body]:
    """Return a chat whose texts are the user's and the assistant's in turn."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


#: Messages and tools.
CHATS: Final[tuple[tuple[list[Body], list[Body] | None], ...]] = (
    (_chat("Hello."), None),
    (_chat("Name three primary colours."), None),
    (_chat("What is 17 + 25?", system="Answer with a number only."), None),
    (_chat("Translate to French: Good morning.", system="You are a translator."), None),
    (_chat("My name is Ada.", "Hello Ada. How can I help?", "What is my name?"), None),
    (_chat("Count to three.", "1, 2, 3.", "Go on to six.", "4, 5, 6.", "And to nine?", system="Be brief."), None),
    (_chat("What is the weather in Oslo?"), [_WEATHER]),
    (_chat("Is it raining in Lima?", system="Use the tools when they help."), [_WEATHER]),
    (_chat('Write the JSON object {"a": 1} again.\n\nNothing else.'), None),
    (_chat("¿Dónde está la biblioteca? Ünïcödé — 図書館 🙂"), None),
)
#: The chats of an adapter's checkpoint between the ends of epochs, for speed: a system message, several turns, tools.
BRIEF: Final = (2, 4, 6)
