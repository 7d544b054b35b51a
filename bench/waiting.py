"""Measure the time to the first token, of the engine and through the API, when idle and while a batch runs.

    python -m bench waiting [--asks 100] [--lines 2048] [--max-tokens 32] [--beside 0 100000]

The time of a client ends with the first word; the first chunk of a chat may only name the role. The time of the engine
is from the moment the worker takes the request to the first chunk that it publishes. Both moments are in the request's
stream in Redis, by the server's clock, and belong to the request whose client is timed. The difference is what the API
and Redis add. It is shown in two ways: by request, and as one p95 less the other. Then the same requests are sent while
a batch runs. `--beside` repeats everything for each value of that setting; 100000 sets no limit.

On a busy machine compare the runs of one call, and expect the slowest of a hundred requests to be caused by others.
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import redis
from openai import ConflictError
from rich import box
from rich.console import Console
from rich.table import Table

from bench.deployment import Deployment, chats, deployed, make_folder
from cli.up import broker
from jobs.inference import interactive

_LINES = ("web", "dispatcher", "cpu", "gpu")
_ANSWER_TOKENS = 8
_WARM_UP = 8
_ALONE = 512  # lines of the batch that runs without clients
_AIM = 50.0  # ms that Nightmill may add, at p95


@dataclass(frozen=True, slots=True)
class First:
    """Milliseconds to the first token."""

    ours: float
    engine: float

    @property
    def added(self) -> float:
        return self.ours - self.engine


@dataclass(frozen=True, slots=True)
class Run:
    """Lines of a batch a second without (`alone`) and with (`beside`) interactive clients."""

    limit: int
    idle: Sequence[First]
    loaded: Sequence[First]
    alone: float
    beside: float


def main() -> None:
    options = _options()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        runs = [_run(Path(name) / str(n), options, limit, console) for n, limit in enumerate(options.beside)]
    _show(console, runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the time to the first token, idle and under a batch")
    parser.add_argument("--asks", type=int, default=100)
    parser.add_argument("--lines", type=int, default=2048, help="of the batch that runs meanwhile")
    parser.add_argument("--max-tokens", type=int, default=32, help="of each of its lines")
    parser.add_argument(
        "--beside", type=int, nargs="+", default=[0], help="values of NIGHTMILL_BATCH_REQUESTS_WHILE_INTERACTIVE"
    )
    parser.add_argument("--engine-url", help="a server instead of vLLM in process; then `--model` names its model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def _run(folder: Path, options: argparse.Namespace, limit: int, console: Console) -> Run:
    folder.mkdir()
    chats(folder / "alone.jsonl", _ALONE, options.model, max_tokens=options.max_tokens, temperature=0, ignore_eos=True)
    chats(
        folder / "in.jsonl", options.lines, options.model, max_tokens=options.max_tokens, temperature=0, ignore_eos=True
    )
    words = ("--no-vllm", "--engine-url", options.engine_url) if options.engine_url else ()
    with deployed(folder, _LINES, words, {"NIGHTMILL_BATCH_REQUESTS_WHILE_INTERACTIVE": str(limit)}) as inline:
        inline.wait_for("cpu.plan")
        inline.wait_for("gpu.generate")
        with _Asker(inline, options.model) as asker:
            asker.many(_WARM_UP)
            idle = asker.many(options.asks)
            console.print(f"beside {limit}, idle: {_percentiles([one.ours for one in idle], 50)[0]:.0f} ms (median)")
            alone = inline.run(inline.upload(folder / "alone.jsonl"))
            loaded, beside = _loaded(inline, asker, folder / "in.jsonl", options.asks)
            console.print(f"beside {limit}, under a batch: {_percentiles([one.ours for one in loaded], 50)[0]:.0f} ms")
    return Run(limit, idle, loaded, _ALONE / alone.running, beside)


class _Asker:
    """A client that sends one request after another."""

    def __init__(self, inline: Deployment, model: str) -> None:
        self._model = model
        key = {
            "Authorization": f"Bearer {inline.system.api_key}",
            "X-Nightmill-Resume": "10",
        }  # keep the stream
        self._http = httpx2.Client(base_url=inline.system.url, headers=key, timeout=600)
        self._redis: Any = redis.Redis(unix_socket_path=str(broker.socket_path(inline.system.folder.path)))
        self._random = random.Random(7)
        self._pause = threading.Event()

    def __enter__(self) -> "_Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._redis.close()

    def many(self, count: int) -> list[First]:
        return [self.one() for _ in range(count)]

    def one(self) -> First:
        """Send one request with a new prompt: a cached prefix would be no measurement."""
        self._pause.wait(self._random.uniform(0.05, 0.4))
        numbers = " ".join(str(self._random.randrange(1000)) for _ in range(24))
        body = {"model": self._model, "messages": [{"role": "user", "content": f"Which is largest? {numbers}"}]}
        began = time.monotonic()
        with self._http.stream(
            "POST", "/v1/chat/completions", json={**body, "max_tokens": _ANSWER_TOKENS, "stream": True}
        ) as said:
            said.raise_for_status()
            lines = said.iter_lines()
            while not _has_words(next(lines)):
                pass
            took = time.monotonic() - began
            for _ in lines:
                pass
        return First(took * 1000, self._engines(said.headers["X-Nightmill-Stream"]))

    def _engines(self, question_id: str) -> float:
        """Return the milliseconds from `taken` to the first chunk."""
        moments: dict[str, int] = {}
        for entry, fields in self._redis.xrange(interactive.answer_key(question_id)):
            kind = interactive.unpack_entry(fields[interactive.ENTRY_FIELD]).kind
            moments.setdefault(kind, int(entry.split(b"-")[0]))
        self._http.delete(f"/v1/streams/{question_id}").raise_for_status()
        return float(moments["chunk"] - moments["taken"])


def _has_words(line: str) -> bool:
    data = line.removeprefix("data: ")
    return data != line and any(choice["delta"].get("content") for choice in json.loads(data)["choices"])


def _loaded(inline: Deployment, asker: _Asker, path: Path, asks: int) -> tuple[list[First], float]:
    """Send requests while a batch runs, and measure the batch."""
    batch = inline.client.batches.create(
        input_file_id=inline.upload(path), endpoint="/v1/chat/completions", completion_window="24h"
    )
    while not (before := _done(inline, batch.id)):
        threading.Event().wait(0.2)
    began, found = time.monotonic(), list[First]()
    while len(found) < asks and inline.client.batches.retrieve(batch.id).status == "in_progress":
        found.append(asker.one())
    rate = (_done(inline, batch.id) - before) / (time.monotonic() - began)
    with suppress(ConflictError):  # the batch has ended
        inline.client.batches.cancel(batch.id)
    if len(found) < asks:
        raise SystemExit(f"the batch ended after {len(found)} questions: give it more --lines")
    return found, rate


def _done(inline: Deployment, job_id: str) -> int:
    job: Any = inline.client.get(f"/jobs/{job_id}", cast_to=object)
    return int(job["progress"]["completed"])


def _show(console: Console, runs: Sequence[Run]) -> None:
    table = Table(
        "beside", "", "asks", "p50", "p95", "p99", "engine p50", "p95", "p99", "added p50", "p95",
        title="ms to the first token", box=box.SIMPLE,
    )  # fmt: skip
    for run in runs:
        for name, firsts in (("idle", run.idle), ("under a batch", run.loaded)):
            ours, engine = [one.ours for one in firsts], [one.engine for one in firsts]
            added = [one.added for one in firsts]
            figures = [*_percentiles(ours, 50, 95, 99), *_percentiles(engine, 50, 95, 99), *_percentiles(added, 50, 95)]
            table.add_row(str(run.limit), name, str(len(firsts)), *(f"{figure:,.0f}" for figure in figures))
    console.print(table)
    for run in runs:
        idle, loaded = ([one.ours for one in firsts] for firsts in (run.idle, run.loaded))
        ratio = _percentiles(loaded, 99)[0] / _percentiles(idle, 99)[0]
        added = _percentiles([one.added for one in run.idle], 95)[0]
        apart = _percentiles(idle, 95)[0] - _percentiles([one.engine for one in run.idle], 95)[0]
        console.print(
            f"beside {run.limit}: p99 under a batch is {ratio:.1f} x that of an idle system; added at p95, idle: "
            f"{added:.0f} ms ({'within' if added <= _AIM else 'beyond'} {_AIM:.0f}), p95 less the engine's p95: "
            f"{apart:.0f} ms; the batch: {run.alone:.1f} lines/s alone, {run.beside:.1f} while one asks"
        )


def _percentiles(values: Sequence[float], *wanted: int) -> list[float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return [cuts[one - 1] for one in wanted]


if __name__ == "__main__":
    main()
