"""Rows to train on, fine-tuning jobs of a deployment, and plain trl over the same rows.

    docstrings of this Python ─▶ rows ─┬─▶ a job through the SDK ─▶ Trained
                                       └─▶ bench.plain_trl, a process of its own ─▶ Trained

The rows teach an entry of three lines, which no prompt asks for and the base model does not write.
"""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from bench.deployment import MARK, Deployment
from bench.plain_trl import PlainReport, PlainSpec
from examples.corpus import docstrings, entry, question
from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from workers import NICENESS

BASE = "smollm2-135m-instruct"
BATCH = 4
SEED = 7
MULTIPLIER = 3.0
ENDS = ("succeeded", "failed", "cancelled")
_RATE = 2e-4  # what the multiplier multiplies: docs/guides/fine-tuning.md
_SAVES = 20  # checkpoints of a job
_NICENESS = 5  # of the trainer's process, added to that of its worker
_LOOK_SECONDS = 0.5

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """The phases of a run in seconds: until it trains its first step, its other steps, and what follows.

    `examining` is what comes before its trainer starts. `peak` is the memory of the largest process, in bytes.
    """

    examining: float
    starting: float
    training: float
    ending: float
    steps: int
    losses: tuple[float, float]
    peak: int

    @property
    def total(self) -> float:
        return self.examining + self.starting + self.training + self.ending

    @property
    def steps_per_second(self) -> float:
        return (self.steps - 1) / self.training


@dataclass(frozen=True, slots=True)
class Measured:
    """A job that succeeded: as the API shows it, its phases, and the dtype that its trainer chose."""

    job: FineTuningJob
    trained: Trained
    dtype: str


# ── rows ──


def rows(count: int) -> list[Row]:
    """Return rows to train on, the same ones with each Python."""
    chosen = docstrings(count)
    if len(chosen) < count:
        raise ValueError(f"the standard library of this Python has only {len(chosen)} docstrings")
    return [{"messages": [*question(one), {"role": "assistant", "content": entry(one)}]} for one in chosen]


def jsonl(lines: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# ── runs ──


def train(
    inline: Deployment,
    lines: Sequence[Row],
    suffix: str,
    on_event: Callable[[FineTuningJobEvent], None] = lambda _: None,
    on_poll: Callable[[], None] = lambda: None,
    seed: int = SEED,
) -> FineTuningJob:
    """Train an adapter of the packaged model for one epoch; return the job as it is in the end.

    `on_event` is called with each event of the job, `on_poll` each half second until the job ends.

    Raises:
        AssertionError: The job does not succeed.
    """
    client = inline.client
    file = client.files.create(file=("rows.jsonl", jsonl(lines)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 1, "batch_size": BATCH, "learning_rate_multiplier": MULTIPLIER}
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix=suffix,
        seed=seed,
        metadata=MARK,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    )
    seen: set[str] = set()
    while job.status not in ENDS or job.finished_at is None:
        threading.Event().wait(_LOOK_SECONDS)
        inline.system.check()
        on_poll()
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in _new_events(inline, job.id, seen):
            on_event(event)
    assert job.status == "succeeded", job
    return job


def measure(
    inline: Deployment,
    lines: Sequence[Row],
    suffix: str,
    on_event: Callable[[FineTuningJobEvent], None] = lambda _: None,
    seed: int = SEED,
) -> Measured:
    """Train as `train` does, and measure the phases. The deployment has SQLite."""
    peaks = [0]
    job = train(inline, lines, suffix, on_event, lambda: peaks.append(inline.peaks()["finetune"]), seed)
    events = list(inline.client.fine_tuning.jobs.list_events(job.id, limit=100))
    return Measured(job, _phases(inline, job.id, max(peaks)), _dtype(events))


def plain(inline: Deployment, lines: Sequence[Row], dtype: str, seed: int = SEED) -> Trained:
    """Train with trl alone on the same rows, with the same options, in a process of its own."""
    steps = -(-len(lines) // BATCH)
    with tempfile.TemporaryDirectory(dir=inline.system.folder.path) as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_bytes(jsonl(lines))
        spec = PlainSpec(
            base=base_folder(inline),
            rows=str(folder / "rows.jsonl"),
            output=str(folder),
            learning_rate=_RATE * MULTIPLIER,
            batch_size=BATCH,
            n_epochs=1,
            seed=seed,
            save_steps=max(1, steps // _SAVES),
            dtype=dtype,
            threads=os.cpu_count() or 1,
            niceness=NICENESS + _NICENESS,
        )
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))
        command = [sys.executable, "-m", "bench.plain_trl", str(folder / "spec.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        report = PlainReport(**json.loads((folder / "report.json").read_text()))
    first, last = report.steps[0], report.steps[-1]
    losses = report.losses[0], report.losses[-1]
    return Trained(0.0, first - report.began, last - first, report.ended - last, len(report.steps), losses, report.peak)


def base_folder(inline: Deployment) -> str:
    """Return the folder of the packaged model's weights."""
    assert BASE in Registry.load(Settings()).models
    return str(inline.system.folder.path / "models" / BASE)


def _new_events(inline: Deployment, job_id: str, seen: set[str]) -> Iterator[FineTuningJobEvent]:
    """Return the events that were not seen before, the oldest first."""
    for event in reversed(inline.client.fine_tuning.jobs.list_events(job_id, limit=100).data):
        if event.id not in seen:
            seen.add(event.id)
            yield event


def _dtype(events: Sequence[FineTuningJobEvent]) -> str:
    started = next(event.message for event in events if event.message.startswith("Fine-tuning started"))
    return "bfloat16" if " in bfloat16" in started else "float32"


def _phases(inline: Deployment, job_id: str, peak: int) -> Trained:
    """Return the phases of a job from the ledger, in microseconds; the API rounds to seconds."""
    with closing(sqlite3.connect(inline.system.folder.path / "nightmill.db")) as database:
        [(created, planned, ended)] = database.execute(
            "SELECT created_at, in_progress_at, completed_at FROM job WHERE id = ?", (job_id,)
        )
        steps = database.execute(
            "SELECT created_at, train_loss FROM finetune_step WHERE job_id = ? ORDER BY step", (job_id,)
        ).fetchall()
    (first, first_loss), (last, last_loss) = steps[0], steps[-1]
    losses = first_loss, last_loss
    return Trained(planned - created, first - planned, last - first, ended - last, len(steps), losses, peak)
