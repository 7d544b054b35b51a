"""Measure training and tuned models: against plain trl, loading adapters, and eight batches with an adapter each.

    python -m bench finetune [--pairs 5] [--steps 12] [--loads 40] [--lines 32]

- Training: a pair is one fine-tuning job through the API and one run of trl alone in a process of its own, in turn, on
  the same rows with the same options. The order changes from pair to pair. Steps a second are those after the first
  step, checkpoints included. Memory is the peak of the largest process. Ratios are medians of pairs.
- Loading: the checkpoints of the first job and the results of the others are asked for in turn, for one token each.
  There are more of them than the engine holds, so that each one is loaded again. The time of the same request with the
  adapter loaded is taken off. `first` includes the fetch and the comparison of probes: ten of a result, three of a
  checkpoint. `beside a batch` includes the wait for the lines that run.
- Batches: eight batches at once with an adapter each, and eight with the same lines on the base, in turn.
"""

import argparse
import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import tuning
from bench.deployment import LIVE, Deployment, chats, deployed, make_folder
from bench.tuning import BASE, Measured, Trained

_LINES = ("web", "dispatcher", "cpu", "gpu", "finetune")
_BATCHES = 8  # with an adapter each
_ROUNDS = 3  # of batches on adapters and on the base
_TOKENS = 32
_TIMEOUT = 600.0


def main() -> None:
    options = _options()
    console = Console(width=120)
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        deployed(Path(name), _LINES, (), {}) as inline,
    ):
        inline.wait_for("cpu.plan")
        inline.wait_for("gpu.generate")
        lines = tuning.rows(options.steps * tuning.BATCH)
        names, results = _train(console, inline, lines, options.pairs)
        _load(console, inline, Path(name), names, results, options.loads)
        _serve(console, inline, Path(name), [*names, *results][-_BATCHES:], options.lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure training, and what serves its results")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of each run; the first job has a checkpoint for each")
    parser.add_argument("--loads", type=int, default=40, help="loads of an adapter, idle and beside a batch")
    parser.add_argument("--lines", type=int, default=32, help="of each of eight batches")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


# ── training ──


def _train(
    console: Console, inline: Deployment, lines: Sequence[tuning.Row], count: int
) -> tuple[list[str], list[str]]:
    """Measure all pairs; return the names of the first job's checkpoints by step, and of the other jobs' results."""
    first = tuning.measure(inline, lines, "warm")  # chooses the dtype, and fills the caches of files
    console.print(f"the first job: {first.trained.total:.0f} s, {first.dtype}")
    pairs = [_pair(console, inline, lines, first.dtype, n) for n in range(count)]
    if pairs:
        console.print(_training([(measured.trained, theirs) for measured, theirs in pairs]))
    page = inline.client.fine_tuning.jobs.checkpoints.list(first.job.id, limit=100)
    names = [checkpoint.fine_tuned_model_checkpoint for checkpoint in page][::-1]
    return names, [str(measured.job.fine_tuned_model) for measured, _ in pairs]


def _pair(
    console: Console, inline: Deployment, lines: Sequence[tuning.Row], dtype: str, n: int
) -> tuple[Measured, Trained]:
    seed = tuning.SEED + 1 + n  # another one for each pair: equal adapters would be one for the engine
    theirs = tuning.plain(inline, lines, dtype, seed) if n % 2 else None
    measured = tuning.measure(inline, lines, f"pair{n}", seed=seed)
    theirs = theirs or tuning.plain(inline, lines, dtype, seed)
    ours = measured.trained
    console.print(
        f"pair {n + 1}: {ours.steps_per_second:.3f} steps/s ({measured.dtype}) against {theirs.steps_per_second:.3f}, "
        f"{ours.peak / 1e6:.0f} MB against {theirs.peak / 1e6:.0f}, whole {ours.total:.0f} s against {theirs.total:.0f}"
    )
    return measured, theirs


def _training(pairs: Sequence[tuple[Trained, Trained]]) -> Table:
    table = Table("median of pairs", "job", "plain trl", "ratio", title=f"{len(pairs)} pairs", box=box.SIMPLE)
    figures = (("steps/s", "steps_per_second", 1.0), ("peak memory, MB", "peak", 1e6), ("whole run, s", "total", 1.0))
    for title, name, unit in figures:
        ours, theirs = ([getattr(run, name) / unit for run in runs] for runs in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        table.add_row(title, f"{statistics.median(ours):.4g}", f"{statistics.median(theirs):.4g}", f"{ratio:.3f}")
    return table


# ── loading ──


def _load(
    console: Console, inline: Deployment, folder: Path, names: Sequence[str], results: Sequence[str], count: int
) -> None:
    """Measure how long a request waits for its adapter. The last checkpoint is loaded first, to compare with."""
    loaded = statistics.median(_seconds(inline, names[-1]) for _ in range(9))
    table = Table("an adapter is loaded, s", "loads", "p50", "p95", box=box.SIMPLE)
    probed = [_seconds(inline, name) for name in results]
    first = [_seconds(inline, name) for name in names[:-1]]
    adapters = [*names, *results]
    turns = [adapters[n % len(adapters)] for n in range(count)]
    idle = [_seconds(inline, name) for name in turns]
    with _working(inline, folder):
        busy = [_seconds(inline, name) for name in turns]
        beside = statistics.median(_seconds(inline, turns[-1]) for _ in range(9))
    for title, seconds, usual in (
        ("first, ten probes", probed, loaded),
        ("first, three probes", first, loaded),
        ("again", idle, loaded),
        ("again, beside a batch", busy, beside),
    ):
        if not seconds:
            continue
        ordered = sorted(max(0.0, taken - usual) for taken in seconds)
        table.add_row(title, str(len(ordered)), *(f"{quantile(ordered, share):.2f}" for share in (0.5, 0.95)))
    console.print(table)
    console.print(f"taken off: {loaded:.3f} s idle, {beside:.3f} s beside a batch")


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value of which at least this share is not larger."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def _seconds(inline: Deployment, name: str) -> float:
    began = time.monotonic()
    inline.client.with_options(timeout=_TIMEOUT).chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Hello."}], max_tokens=1, temperature=0
    )
    return time.monotonic() - began


@contextmanager
def _working(inline: Deployment, folder: Path) -> Iterator[None]:
    """Keep a batch on the base running."""
    path = folder / "beside.jsonl"
    chats(path, 20_000, BASE, max_tokens=_TOKENS, temperature=0)
    batch = inline.client.batches.create(
        input_file_id=inline.upload(path), endpoint="/v1/chat/completions", completion_window="24h"
    )
    while not (counts := inline.client.batches.retrieve(batch.id).request_counts) or not counts.completed:
        threading.Event().wait(0.2)
        inline.system.check()
    try:
        yield
        assert inline.client.batches.retrieve(batch.id).status == "in_progress", "the batch ended too early"
    finally:
        inline.client.batches.cancel(batch.id)
        while inline.client.batches.retrieve(batch.id).status in LIVE:
            threading.Event().wait(0.2)


# ── batches ──


def _serve(console: Console, inline: Deployment, folder: Path, names: Sequence[str], count: int) -> None:
    """Measure batches with an adapter each against the same lines on the base."""
    for name in names:
        _seconds(inline, name)
    ratios, tuned, base = [], [], []
    for n in range(_ROUNDS):
        both = [_together(inline, folder, models, count) for models in ((names, [BASE] * len(names))[:: (-1) ** n])]
        ours, theirs = both[:: (-1) ** n]
        tuned.append(ours)
        base.append(theirs)
        ratios.append(ours / theirs)
    table = Table(f"{len(names)} batches of {count} lines at once", "adapters", "base", "ratio", box=box.SIMPLE)
    medians = [statistics.median(values) for values in (tuned, base, ratios)]
    table.add_row("seconds until all have ended", f"{medians[0]:.1f}", f"{medians[1]:.1f}", f"{medians[2]:.2f}")
    console.print(table)


def _together(inline: Deployment, folder: Path, models: Sequence[str], count: int) -> float:
    """Run a batch for each model, all at once; return the seconds until the last one has ended."""
    files = []
    for n, model in enumerate(models):
        path = folder / f"lines-{n}.jsonl"
        chats(path, count, model, max_tokens=_TOKENS, temperature=0)
        files.append(inline.upload(path))
    began = time.monotonic()
    batches = [
        inline.client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
        for file in files
    ]
    while any(batch.status in LIVE for batch in batches):
        threading.Event().wait(0.2)
        inline.system.check()
        batches = [inline.client.batches.retrieve(batch.id) for batch in batches]
    seconds = time.monotonic() - began
    for batch in batches:
        counts = batch.request_counts
        assert counts is not None
        assert counts.completed == count, json.dumps(counts.model_dump())
    return seconds


if __name__ == "__main__":
    main()
