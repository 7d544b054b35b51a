"""Find the fastest way of computing an embedding model that keeps its vectors.

Every candidate computes the same texts; the fastest that keeps the vectors is chosen:

                        reference: torch float32
    texts, by length ─▶ torch bfloat16              ─▶ cosines to the reference ─▶ refused below the floor
                        onnx float32   (CPUs only)  ─▶ rounds, taken in turns   ─▶ the fastest of the others
                        onnx int8      (CPUs only)

Rounds are taken in turns, and the best of each candidate counts, because other processes slow single rounds down.
"""

import copy
import decimal
import difflib
import doctest
import heapq
import inspect
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from jobs.fleet.runtimes import Candidate
from workers.engines.encoders import embed_model
from workers.engines.encoders.embed_model import SentenceModel, Transformer
from workers.engines.foreign_errors import ForeignCall

T = TypeVar("T")

TEXTS: Final = 64
MAX_WORDS: Final = 120
TEXTS_PER_BATCH: Final = 8  # texts of one micro-batch
ROUNDS: Final = 4
BUDGET_SECONDS: Final = 8.0  # no round begins later: a large model on a small machine takes minutes for one
GAIN: Final = 1.1  # by which a candidate must be faster than the one before it: less is noise


@dataclass(slots=True)
class _Trial:
    """A candidate and its measurements."""

    runtime: str
    dtype: str
    make: Callable[[], Transformer]
    file: Path | None = None
    transformer: Transformer | None = None
    making: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cosines: tuple[float, float] = (0.0, 0.0)
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    candidates: tuple[Candidate, ...]
    chosen: int
    file: Path | None  # of the chosen candidate, if it needs one


def measure(model: SentenceModel, floor: float, scratch: Path, restricted_to: str = "") -> Measured:
    """Measure all candidates.

    `model` computes in float32. Only candidates of the runtime `restricted_to` may be chosen.
    """
    trials = list(_trials(model, scratch))
    for trial in trials:
        _make(trial)
    batches = _batches(model)
    reference = _vectors(model, trials[0], batches)
    trials[0].cosines = 1.0, 1.0
    for trial in trials[1:]:
        _compare(model, trial, batches, reference, floor)
    _race(model, [trial for trial in trials if not trial.refused or trial.seconds], batches)
    candidates = tuple(_candidate(trial) for trial in trials)
    chosen = choose(candidates, restricted_to)
    return Measured(candidates, chosen, trials[chosen].file)


def choose(candidates: Sequence[Candidate], restricted_to: str = "") -> int:
    """Return the fastest candidate that is not refused.

    Earlier ones, which need less, win unless the gain is worth it.
    """
    allowed = [
        (index, candidate)
        for index, candidate in enumerate(candidates)
        if not candidate.refused and restricted_to in {"", candidate.runtime}
    ]
    best, rate = 0, 0.0
    for index, candidate in allowed:
        if candidate.texts_per_second > rate * GAIN:
            best, rate = index, candidate.texts_per_second
    return best


def too_far(mean: float, least: float, floor: float) -> str:
    """Return why vectors with these cosines are below the floor; empty if they are not.

    The floor is for the mean: a single vector may be twice as far off.
    """
    if mean < floor:
        return f"mean cosine {mean:.4f} is below {floor:g}"
    if least < 2 * floor - 1:
        return f"least cosine {least:.4f} is below {2 * floor - 1:g}"
    return ""


def _trials(model: SentenceModel, scratch: Path) -> Iterator[_Trial]:
    import torch

    first: Any = model.transformer
    yield _Trial("torch", "float32", lambda: first)
    yield _Trial("torch", "bfloat16", lambda: copy.deepcopy(first).to(torch.bfloat16))
    if model.device.type == "cpu":
        whole, small = scratch / "float32.onnx", scratch / "int8.onnx"
        yield _Trial("onnx", "float32", lambda: _export(model, whole), whole)
        yield _Trial("onnx", "int8", lambda: _quantise(model, whole, small), small)


def _export(model: SentenceModel, path: Path) -> Transformer:
    embed_model.export_onnx(model.transformer, path)
    return embed_model.OnnxTransformer(path, model.threads)


def _quantise(model: SentenceModel, whole: Path, path: Path) -> Transformer:
    if not whole.exists():
        raise embed_model.NotExportable("there is no export to quantise")
    embed_model.quantise_onnx(whole, path)
    return embed_model.OnnxTransformer(path, model.threads)


def _make(trial: _Trial) -> None:
    """Make the candidates' models. A candidate that cannot be exported is refused, and the reason recorded."""
    start = time.perf_counter()
    trial.transformer = _attempt(trial, trial.make)
    trial.making = time.perf_counter() - start


def _attempt(trial: _Trial, work: Callable[[], T]) -> T | None:
    """Return the result of `work`; refuse the candidate for what `work` raises."""
    with ForeignCall() as call:
        return work()
    trial.refused = _reason(call.error)
    return None


def _compare(model: SentenceModel, trial: _Trial, batches: list[Any], reference: Any, floor: float) -> None:
    if trial.refused:
        return
    vectors = _attempt(trial, lambda: _vectors(model, trial, batches))
    if vectors is None:
        return
    cosines = (vectors * reference).sum(axis=1)
    trial.cosines = round(float(cosines.mean()), 5), round(float(cosines.min()), 5)
    trial.refused = too_far(*trial.cosines, floor)
    trial.seconds.append(float("inf"))  # it works: its rate is recorded even where it must not be chosen


def _race(model: SentenceModel, trials: Sequence[_Trial], batches: list[Any]) -> None:
    end = time.perf_counter() + BUDGET_SECONDS
    for number in range(ROUNDS):
        if number and time.perf_counter() > end:
            return
        for trial in trials:
            start = time.perf_counter()
            _vectors(model, trial, batches)
            trial.seconds.append(time.perf_counter() - start)


def _vectors(model: SentenceModel, trial: _Trial, batches: list[Any]) -> Any:
    import numpy as np

    assert trial.transformer is not None
    return np.concatenate([model.embed_by(trial.transformer, batch) for batch in batches])


def _batches(model: SentenceModel) -> list[list[list[int]]]:
    """Return the token ids of the texts in micro-batches of nearly one length, as the engine makes them."""
    ids = sorted((ids[: model.longest] for ids in model.tokens_of(texts())), key=len)
    return [ids[at : at + TEXTS_PER_BATCH] for at in range(0, len(ids), TEXTS_PER_BATCH)]


def texts() -> list[str]:
    """Return English texts from Python's own documentation, from 3 words to a long paragraph."""
    modules = (decimal, difflib, doctest, heapq, inspect, logging, statistics)
    words = " ".join(inspect.getdoc(module) or "" for module in modules).split()
    lengths = [round(3 * (MAX_WORDS / 3) ** (n / (TEXTS - 1))) for n in range(TEXTS)]
    starts = [n * (len(words) - MAX_WORDS) // TEXTS for n in range(TEXTS)]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def _candidate(trial: _Trial) -> Candidate:
    best = min(trial.seconds, default=float("inf"))
    mean, least = trial.cosines
    return Candidate(
        trial.runtime,
        trial.dtype,
        texts_per_second=round(TEXTS / best, 1),
        mean_cosine=mean,
        least_cosine=least,
        making_seconds=round(trial.making, 2),
        file_bytes=trial.file.stat().st_size if trial.file and trial.file.exists() else 0,
        refused=trial.refused,
    )


def _reason(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
