"""Measure how much a large project delays a small one on the same worker: its batches, and its interactive clients.

    python -m bench fairness [--jobs 10] [--lines 256] [--times 100] [--delay-ms 50]
    python -m bench fairness --clients [--asks 10] [--patience 120]

Batches: the small project submits its jobs at once, alone; then again while the large project has submitted `times` as
much work to the same queue before. The measure is the time from the creation of the small jobs to their end. While both
have work, the share of the small project is half of the worker, so a fair queue takes twice as long. First come, first
served would take about a hundred times as long. Interactive clients of an embedding model: see `bench.flood`.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

from openai import OpenAI
from rich.console import Console

from bench import flood
from bench.deployment import LIVE, chats, deployed
from tests.support import stub_engine

_MODEL = "fake-model"
_LINES = {"web": "", "dispatcher": "", "cpu": "", "gpu": ""}
#: Slow answers make the worker the bottleneck, and not this machine.
_ENVIRONMENT = {"NIGHTMILL_ENGINE_CONCURRENCY": "32", "NIGHTMILL_VLLM_ENABLED": "false"}
_LARGEST = 25_600


def main() -> None:
    options = _options()
    console = Console(width=120)
    if options.clients:
        flood.measure(console, options.asks, options.patience)
        return
    with (
        tempfile.TemporaryDirectory() as name,
        stub_engine.running(Path(name) / "prompts.log", "--models", _MODEL, "--delay-ms", str(options.delay_ms)) as url,
        deployed(Path(name), _LINES, ("--engine-url", f"{url}/v1"), _ENVIRONMENT) as inline,
    ):
        inline.wait_for("cpu.plan")
        inline.wait_for("gpu.generate")
        small, big = (inline.project(name) for name in ("small", "big"))
        path = Path(name) / "small.jsonl"
        chats(path, options.lines, _MODEL)
        alone = _waits(small, _upload(small, path), options.jobs)
        _shown(console, "alone", alone)
        _burden(big, Path(name), options.jobs * options.lines * options.times)
        beside = _waits(small, _upload(small, path), options.jobs)
        _shown(console, f"beside {options.times} times the work", beside)
        ratio = statistics.median(beside) / statistics.median(alone)
        console.print(f"ratio of the medians {ratio:.2f}, of the last {max(beside) / max(alone):.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure what a big project costs a small one")
    parser.add_argument("--jobs", type=int, default=10, help="jobs of the small project")
    parser.add_argument("--lines", type=int, default=256, help="lines of each")
    parser.add_argument("--times", type=int, default=100, help="the big project's work, in the small one's")
    parser.add_argument("--delay-ms", type=float, default=50.0, help="an answer of the engine")
    parser.add_argument("--clients", action="store_true", help="measure embeddings and searches instead of batches")
    parser.add_argument("--asks", type=int, default=10, help="requests of each kind")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds after which one is given up")
    return parser.parse_args()


def _upload(client: OpenAI, path: Path) -> str:
    with path.open("rb") as handle:
        return client.files.create(file=handle, purpose="batch").id


def _create(client: OpenAI, file_id: str) -> str:
    return client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h").id


def _burden(client: OpenAI, folder: Path, lines: int) -> None:
    """Submit jobs with so many lines in total, and wait until the first of them runs."""
    path = folder / "big.jsonl"
    chats(path, min(lines, _LARGEST), _MODEL)
    file_id = _upload(client, path)
    first, *_ = [_create(client, file_id) for _ in range(-(-lines // _LARGEST))]
    while client.batches.retrieve(first).status == "validating":
        threading.Event().wait(0.1)
    threading.Event().wait(2.0)


def _waits(client: OpenAI, file_id: str, count: int) -> list[float]:
    """Return the seconds from the creation of each job to its end."""
    began, waits = {}, {}
    for _ in range(count):
        at = time.monotonic()
        began[_create(client, file_id)] = at
    while len(waits) < count:
        threading.Event().wait(0.1)
        for job in began.keys() - waits.keys():
            status = client.batches.retrieve(job).status
            if status not in LIVE:
                assert status == "completed", status
                waits[job] = time.monotonic() - began[job]
    return sorted(waits.values())


def _shown(console: Console, what: str, waits: list[float]) -> None:
    console.print(f"{what:<28} median {statistics.median(waits):5.1f} s, last {max(waits):5.1f} s")


if __name__ == "__main__":
    main()
