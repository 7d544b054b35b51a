"""Kill everything while batches run, start it again, and measure how soon the batches go on.

    python -m bench recovery [--batches 20] [--lines 2000] [--delay-ms 0] [--distributed]

`nightmill up` runs with its defaults and the whole Procfile, over the stub engine's HTTP. All batches are planned and
in progress. When half of the lines of the first have been requested, kill -9 ends every process of the deployment:
guard, supervisor, broker, API, dispatcher, workers; with `--distributed` also PostgreSQL, RabbitMQ, S3 and Valkey,
which are running again before the clock starts. The engine goes on. Then `up` starts again. Times are from its start to
the first prompt at the engine, to a prompt of each batch (the later ones wait for those before them), and to the end of
all. Each custom_id must occur once in the outputs, and no more may run twice than was in flight.
"""

import argparse
import json
import os
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from rich.console import Console

from bench.deployment import LIVE, Deployment, make_folder
from cli.demo.system import running
from jobs.db.engine import Database
from jobs.ledger import pauses
from jobs.ledger.slot_weights import SLOTS
from jobs.queues import Queue
from jobs.settings import Settings
from tests.support import stub_engine
from tests.support.background_thread import beside
from tests.support.distributed import Servers, servers

MODEL = "stub-model"
FIRST_AIM, ALL_AIM = 15.0, 60.0  # seconds
_ASKED = re.compile(rb"batch (\d+) line \d+")
_LOOK_SECONDS = 0.01
_SETTLED_SECONDS = 0.5  # seconds until sent requests are in the stub's log
_GIVEN_UP_SECONDS = 900.0


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        folder = Path(name)
        words = ("--models", MODEL, "--delay-ms", str(options.delay_ms))
        engine = stack.enter_context(stub_engine.running(folder / "prompts.log", *words))
        shared = stack.enter_context(servers(folder)) if options.distributed else None
        asked = stack.enter_context(BatchPromptLog(folder / "prompts.log").watching())
        _measure(folder, engine, shared, asked, options, Console(width=140, highlight=False))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kill everything while batches run, and start it again")
    parser.add_argument("--batches", type=int, default=20, help="that are in progress")
    parser.add_argument("--lines", type=int, default=2000, help="of each")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="that the engine takes for an answer")
    parser.add_argument("--distributed", action="store_true", help="on PostgreSQL, RabbitMQ, S3 and Valkey")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


class BatchPromptLog:
    """The prompts that the stub received for each batch, read from its growing log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self.counts = Counter[int]()
        self.first: dict[int, float] = {}  # prompts of each batch, since `forget`

    @contextmanager
    def watching(self) -> Iterator["BatchPromptLog"]:
        with beside(self._watch):
            yield self

    def forget(self) -> None:
        with self._lock:
            self.first = {}

    def _watch(self, stop: threading.Event) -> None:
        with self._log.open("rb") as log:
            rest = b""
            while not stop.wait(_LOOK_SECONDS):
                *lines, rest = (rest + log.read()).split(b"\n")
                at = time.monotonic()
                with self._lock:
                    for line in lines:
                        if found := _ASKED.search(line):
                            batch = int(found[1])
                            self.counts[batch] += 1
                            self.first.setdefault(batch, at)


def _measure(
    folder: Path,
    engine: str,
    shared: Servers | None,
    asked: BatchPromptLog,
    options: argparse.Namespace,
    console: Console,
) -> None:
    with _up(folder, engine, shared) as inline:
        with _held(inline, shared):
            batches = [_begun(inline, folder, n, options.lines) for n in range(options.batches)]
            _until(lambda: _are(inline, batches, "in_progress"), inline, "every batch is planned")
            processes = _family(inline)
        _until(lambda: asked.counts.total() >= options.lines // 2, inline, "the first is asked for half", _LOOK_SECONDS)
        _kill(processes)
    if shared is not None:
        _die_and_come_back(shared)
    threading.Event().wait(_SETTLED_SECONDS)
    asked.forget()
    before, began = asked.counts.total(), time.monotonic()
    with _up(folder, engine, shared) as inline:
        ready = time.monotonic() - began
        _until(lambda: _are(inline, batches, "completed"), inline, "every batch is completed")
        over = time.monotonic() - began
        for n, batch in enumerate(batches):
            _check(inline, batch, n, options.lines)
    whole = options.batches * options.lines
    again, config = asked.counts.total() - whole, Settings()
    bound = SLOTS * config.shard_lines
    went_on = sorted(at - began for at in asked.first.values())
    place = "distributed set" if shared else "embedded defaults"
    console.print(f"recovery  {place}: {options.batches} batches of {options.lines:,} lines, {before:,} asked for")
    console.print(
        f"          kill -9 of {len(processes)} processes{' and 4 servers' if shared else ''}; ready {ready:.1f} s"
    )
    console.print(f"          first batch goes on {went_on[0]:.1f} s after the start (aim: {FIRST_AIM:.0f} s)")
    console.print(f"          all {len(went_on)} go on {went_on[-1]:.1f} s after it (aim: {ALL_AIM:.0f} s)")
    console.print(f"          all completed {over:.1f} s after it, each custom_id once")
    console.print(f"          lines asked twice: {again:,}, at most {bound:,}")
    assert len(went_on) == options.batches, (
        "a batch had been asked for everything before the kill: more --lines, or a --delay-ms"
    )
    assert again <= bound, "more was asked again than the kill accounts for"


# -- the deployment


@contextmanager
def _up(folder: Path, engine: str, shared: Servers | None) -> Iterator[Deployment]:
    variables: Mapping[str, str] = shared.variables if shared else {}
    words = ("--no-vllm", "--engine-url", f"{engine}/v1")
    with running(folder / "data", words, {"NIGHTMILL_LOG_LEVEL": "WARNING", **variables}) as system:
        system.wait_until_ready()
        yield Deployment(system)


def _family(inline: Deployment) -> Sequence[psutil.Process]:
    """Return every process of the deployment, those that would restart others first."""
    leaders = [psutil.Process(one["pid"]) for one in inline.system.folder.read_run()["processes"] if one["pid"]]
    supervisor = leaders[0].parent()
    assert supervisor is not None
    guard = supervisor.parent()
    assert guard is not None
    assert guard.ppid() == os.getpid(), "it is not ours"
    above = (guard, supervisor)
    return [*above, *(one for one in guard.children(recursive=True) if one not in above)]


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(processes[1:], timeout=10)  # the first is a child of this process
    assert not left, left


def _die_and_come_back(shared: Servers) -> None:
    everyone = (*shared.named.values(), shared.valkey)
    for server in everyone:
        server.kill()
    for server in everyone:
        server.start()


def _until(true: Callable[[], bool], inline: Deployment, what: str, every: float = 0.5) -> None:
    deadline = time.monotonic() + _GIVEN_UP_SECONDS
    while not true():
        inline.system.check()
        assert time.monotonic() < deadline, f"{what}: not within {_GIVEN_UP_SECONDS:.0f} s"
        threading.Event().wait(every)


# -- the batches


@contextmanager
def _held(inline: Deployment, shared: Servers | None) -> Iterator[None]:
    """Pause generation while the block runs."""
    db = Database(shared.database if shared else f"sqlite:///{inline.system.folder.path / 'nightmill.db'}", patience=30)
    try:
        with db.write() as session:
            pauses.pause(session, pauses.Scope.QUEUE, Queue.GENERATE, actor="bench")
        yield
        with db.write() as session:
            pauses.resume(session, pauses.Scope.QUEUE, Queue.GENERATE, actor="bench")
    finally:
        db.close()


def _begun(inline: Deployment, folder: Path, batch: int, lines: int) -> str:
    path = folder / "input.jsonl"
    with path.open("w") as file:
        for n in range(lines):
            messages = [{"role": "user", "content": f"batch {batch} line {n}"}]
            line = {"custom_id": f"{batch}-{n}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": {"model": MODEL, "messages": messages}}) + "\n")
    made = inline.client.batches.create(
        input_file_id=inline.upload(path), endpoint="/v1/chat/completions", completion_window="24h"
    )
    return made.id


def _are(inline: Deployment, batches: Sequence[str], status: str) -> bool:
    """Return whether all batches have the status. Raises AssertionError for a batch that cannot reach it any more."""
    found = [inline.client.batches.retrieve(batch) for batch in batches]
    failed = [batch for batch in found if batch.status not in (*LIVE, "completed")]
    assert not failed, failed
    return all(batch.status == status for batch in found)


def _check(inline: Deployment, batch_id: str, batch: int, lines: int) -> None:
    """Check that a batch succeeded, and has each custom_id once."""
    made = inline.client.batches.retrieve(batch_id)
    assert made.error_file_id is None, made
    assert made.output_file_id is not None
    with inline.client.files.with_streaming_response.content(made.output_file_id) as answer:
        names = Counter(json.loads(line)["custom_id"] for line in answer.iter_lines())
    assert names == Counter(f"{batch}-{n}" for n in range(lines)), f"{batch_id}: not each custom_id once"


if __name__ == "__main__":
    main()
