"""Measure 512 chats on the packaged model: a warm worker of a deployment against vLLM's own batch runner.

    python -m bench generation [--pairs 5] [--chats 512] [--max-tokens 32] [--without-lora]

A pair is one batch through the API and one run of `python -m vllm.entrypoints.openai.run_batch`, one after the other,
with the same engine settings and environment. The worker stays loaded, and idle while the runner works; the runner
loads the model in each run. Two times are compared. Generation: of the deployment the state `running`, from the commit
of the plan to that of the last segment; of the runner from reading the input to writing the output. Total: of the
deployment from the creation of the batch to the downloaded output; of the runner from its start to its exit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from bench.deployment import Deployment, chats, deployed, make_folder
from jobs.fleet.models_file import PACKAGED_FILE, ModelConfig, Registry
from jobs.settings import Settings
from workers.engines.vllm.vllm_serving import DEFAULTS, argv, prepare_environment, wide

_MODEL = "smollm2-135m-instruct"
_LINES = ("web", "dispatcher", "cpu", "gpu", "embed", "io", "flower")
_LOOKS_PER_READING = 2
_READING, _WRITING = b"Reading batch from", b"Writing outputs to"


@dataclass(frozen=True, slots=True)
class Run:
    """One run, in seconds. `cpu` is of the worker and its engine, `others` the cores used by each other line."""

    generating: float
    whole: float
    cpu: float
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Meter:
    """The CPU time of each line while a batch is in progress, read periodically."""

    inline: Deployment
    readings: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _looks: int = 0

    def seen(self, status: str) -> None:
        if status == "in_progress":
            if self._looks % _LOOKS_PER_READING == 0:
                self.readings.append((time.monotonic(), self.inline.cpu()))
            self._looks += 1

    def cores(self) -> dict[str, float]:
        (began, before), (ended, after) = self.readings[0], self.readings[-1]
        return {name: (after[name] - before[name]) / (ended - began) for name in after}


def main() -> None:
    options = _options()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        chats(folder / "in.jsonl", options.chats, _MODEL, max_tokens=options.max_tokens, temperature=0)
        if options.without_lora:
            os.environ["NIGHTMILL_MODELS_FILE"] = str(without_lora(folder / "models.yaml"))
        with deployed(folder, _LINES, (), {}) as inline:
            inline.wait_for("cpu.plan")
            inline.wait_for("gpu.generate")
            console.print(f"the first job, on a worker that has just loaded: {_ours(inline, folder).whole:.1f} s")
            pairs = [_pair(inline, folder, console, n) for n in range(options.pairs)]
    _show(console, pairs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure generation against vLLM's own batch runner")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--chats", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--without-lora", action="store_true", help="an engine that takes no adapters")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def without_lora(path: Path) -> Path:
    """Write the packaged models file with an engine that takes no adapters, and return its path."""
    lines = PACKAGED_FILE.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "lora" not in line.partition("#")[0]))
    return path


def _pair(inline: Deployment, folder: Path, console: Console, n: int) -> tuple[Run, Run]:
    """Measure one pair. The order changes from pair to pair."""
    theirs = _theirs(inline, folder) if n % 2 else None
    ours = _ours(inline, folder)
    theirs = theirs or _theirs(inline, folder)
    console.print(f"pair {n + 1}: generating {ours.generating:.1f} s against {theirs.generating:.1f} s, "
                  f"whole {ours.whole:.1f} s against {theirs.whole:.1f} s")  # fmt: skip
    return ours, theirs


def _ours(inline: Deployment, folder: Path) -> Run:
    file_id = inline.upload(folder / "in.jsonl")
    meter, before, began = _Meter(inline), inline.cpu(), time.monotonic()
    done = inline.run(file_id, seen=meter.seen, every=1.0)
    used = inline.cpu()["gpu"] - before["gpu"]
    content = inline.client.files.content(done.job["output_file_id"]).content
    whole = time.monotonic() - began
    assert len(content.splitlines()) == done.job["progress"]["total"]
    others = {name: cores for name, cores in meter.cores().items() if name != "gpu"}
    return Run(done.running, whole, used, others)


def _theirs(inline: Deployment, folder: Path) -> Run:
    """Run the runner, and find in its log the two lines between which it generates."""
    model = Registry.load(Settings()).models[_MODEL]
    weights = inline.system.folder.path / "models" / _MODEL
    words = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "theirs.jsonl"), "--model", str(weights)]
    same = {**DEFAULTS, **wide(str(weights), model.engine_args), **model.engine_args}
    words += ["--served-model-name", _MODEL, *argv(same, {})]
    began, marks = time.monotonic(), dict[bytes, tuple[float, float]]()
    with subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", *words],
        env=_environment(model, weights), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as runner:  # fmt: skip
        assert runner.stdout
        for line in runner.stdout:
            for mark in (_READING, _WRITING):
                if mark in line:
                    marks[mark] = time.monotonic(), _cpu(runner.pid)
    assert runner.returncode == 0, runner.returncode
    lines = [json.loads(line) for line in (folder / "theirs.jsonl").read_text().splitlines()]
    assert all(line["error"] is None for line in lines)
    generating, cpu = (end - start for start, end in zip(marks[_READING], marks[_WRITING], strict=True))
    return Run(generating, time.monotonic() - began, cpu)


def _cpu(pid: int) -> float:
    runner = psutil.Process(pid)
    times = [process.cpu_times() for process in (runner, *runner.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def _environment(model: ModelConfig, weights: Path) -> Mapping[str, str]:
    """Return the variables that the worker sets for its engine, with the runner's log on."""
    previous = dict(os.environ)
    prepare_environment(str(weights), model.engine_args)
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
    os.environ.clear()
    os.environ.update(previous)
    return environment


def _show(console: Console, pairs: list[tuple[Run, Run]]) -> None:
    table = Table("median of pairs", "ours", "run_batch", "ratio", title=f"{len(pairs)} pairs", box=box.SIMPLE)
    for title, figure in (("generating, s", "generating"), ("its CPU, s", "cpu"), ("whole job, s", "whole")):
        ours = [getattr(one, figure) for one, _ in pairs]
        theirs = [getattr(other, figure) for _, other in pairs]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        table.add_row(title, f"{statistics.median(ours):.2f}", f"{statistics.median(theirs):.2f}", f"{ratio:.3f}")
    console.print(table)
    names = pairs[0][0].others
    each = {name: statistics.median(ours.others[name] for ours, _ in pairs) for name in names}
    others = statistics.median(sum(ours.others.values()) for ours, _ in pairs)
    console.print(
        f"while generating, all our processes but the gpu worker and its engine: {others * 100:.1f} % of a core "
        f"({', '.join(f'{name} {cores * 100:.1f}' for name, cores in each.items())})"
    )


if __name__ == "__main__":
    main()
