"""Which way of computing is the fastest one that keeps the vectors: every candidate on the same texts.

                        reference: torch float32
    texts, by length ─▶ torch bfloat16              ─▶ cosines to the reference ─▶ refused below the floor
                        onnx float32   (CPUs only)  ─▶ rounds, taken in turns   ─▶ the fastest of the others
                        onnx int8      (CPUs only)

Rounds are taken in turns and the best of each candidate counts: what else the machine does slows single rounds down.
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
from typing import Any, Final

from jobs.fleet.runtimes import Candidate
from workers.engines import embed_onnx
from workers.engines.embed_model import SentenceModel, Transformer

TEXTS: Final = 64
LONGEST_WORDS: Final = 120
TOGETHER: Final = 8  # texts of one micro-batch
ROUNDS: Final = 4
BUDGET_SECONDS: Final = 8.0  # no further round after these: a large model on a small machine takes minutes for one
GAIN: Final = 1.1  # what a candidate must win over the one before it: less is noise

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trial:
    """A candidate while it is measured."""

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
    file: Path | None  # of the chosen one, if it needs one


def measure(model: SentenceModel, floor: float, scratch: Path, restricted_to: str = "") -> Measured:
    """`model` computes in float32. `restricted_to` a runtime, others are measured but not taken."""
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
    """The fastest that is not refused; the first ones, which need less, are kept unless the gain is worth it."""
    allowed = [
        (place, one) for place, one in enumerate(candidates) if not one.refused and restricted_to in {"", one.runtime}
    ]
    best, rate = 0, 0.0
    for place, one in allowed:
        if one.texts_per_second > rate * GAIN:
            best, rate = place, one.texts_per_second
    return best


def too_far(mean: float, least: float, floor: float) -> str:
    """Why vectors at these cosines are below the floor. A single one may be twice as far off as the mean."""
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
        yield _Trial("onnx", "float32", lambda: _exported(model, whole), whole)
        yield _Trial("onnx", "int8", lambda: _quantised(model, whole, small), small)


def _exported(model: SentenceModel, path: Path) -> Transformer:
    embed_onnx.export(model.transformer, path)
    return embed_onnx.OnnxTransformer(path, model.threads)


def _quantised(model: SentenceModel, whole: Path, path: Path) -> Transformer:
    if not whole.exists():
        raise embed_onnx.NotExportable("there is no export to quantise")
    embed_onnx.quantise(whole, path)
    return embed_onnx.OnnxTransformer(path, model.threads)


def _make(trial: _Trial) -> None:
    """Models differ in what can be exported: what fails is refused, and its reason recorded."""
    start = time.perf_counter()
    try:
        trial.transformer = trial.make()
    except Exception as error:  # noqa: BLE001 (an exporter raises anything)
        trial.refused = _reason(error)
    trial.making = time.perf_counter() - start


def _compare(model: SentenceModel, trial: _Trial, batches: list[Any], reference: Any, floor: float) -> None:
    if trial.refused:
        return
    try:
        found = _vectors(model, trial, batches)
    except Exception as error:  # noqa: BLE001 (so does an operator that the hardware lacks)
        trial.refused = _reason(error)
        return
    cosines = (found * reference).sum(axis=1)
    trial.cosines = round(float(cosines.mean()), 5), round(float(cosines.min()), 5)
    trial.refused = too_far(*trial.cosines, floor)
    trial.seconds.append(float("inf"))  # it computes: its rate is recorded, whether it may be taken or not


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
    """Token ids of the texts in micro-batches, as the engine makes them: of nearly one length."""
    ids = sorted((ids[: model.longest] for ids in model.tokens_of(texts())), key=len)
    return [ids[at : at + TOGETHER] for at in range(0, len(ids), TOGETHER)]


def texts() -> list[str]:
    """English of many lengths that every Python has with it, from 3 words to a long paragraph."""
    modules = (decimal, difflib, doctest, heapq, inspect, logging, statistics)
    words = " ".join(inspect.getdoc(module) or "" for module in modules).split()
    lengths = [round(3 * (LONGEST_WORDS / 3) ** (n / (TEXTS - 1))) for n in range(TEXTS)]
    starts = [n * (len(words) - LONGEST_WORDS) // TEXTS for n in range(TEXTS)]
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


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
