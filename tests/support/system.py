"""A whole deployment under test: `nightmill up` in a process of its own, and the stub engine beside it.

    StubEngine   a process that is started again whenever it ends, on the same port, over one log of prompts
    System       guard ── supervisor ── broker, web, dispatcher, cpu, evaluate, gpu, embed, finetune, io,
                                        (web2, dispatcher2, gpu2), (tuned)

The Procfile is the product's own; with `rivals` it has a second web process (on a port of its own), dispatcher and
generator in place of Flower: what one loses another takes up, also while the first is a zombie that still believes in
its claim. With `trains` the processes `finetune` and `tuned` are stand-ins that compute nothing.

`System` can kill and freeze each process by its name, and knows everything that it ever saw running, so that what is
left behind is found even where it has left its family.
"""

import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import psutil

from jobs.queues import Queue
from tests.support.stub_engine import BROKEN, CANARY

ROOT = Path(__file__).parents[2]
LOG_LINE = 2000  # characters of a log's line that are shown
_SHIFTING = Path(__file__).parent / "clocks"
_WATCH = Path(__file__).parent / "watch"
GRACE_SECONDS = 30.0  # a busy machine stands still for this long, and no test may fail by it
_PORTS = (12_000, 32_000)  # Linux lends 32,768 to 60,999: net.ipv4.ip_local_port_range
MODEL = "stub-model"
EMBED_MODEL = "stub-embed"
EMBED_ALIAS = "acme/embed"
CACHED_MODEL = "stub-cached"  # the first under a name of the models file: what an endpoint shows is not cached
CANARY_MODEL, BROKEN_MODEL = "stub-canary", "stub-broken"  # see `stub_engine`

#: Time constants at a tenth of what they are in life, so that a lease is lost and found while one looks on.
SCALED: Mapping[str, str] = {
    "NIGHTMILL_SHARD_LINES": "32",
    "NIGHTMILL_SEGMENT_SECONDS": "0.2",
    "NIGHTMILL_ENGINE_CONCURRENCY": "16",  # a shard takes a while, and has segments behind it when its worker dies
    "NIGHTMILL_LEASE_SECONDS": "3",
    "NIGHTMILL_REDELIVERY_SECONDS": "2",
    "NIGHTMILL_ENGINE_TIMEOUT_SECONDS": "8",
    "NIGHTMILL_WEBHOOK_ALLOW_PRIVATE": "true",
    "NIGHTMILL_WEBHOOK_RETRY_SECONDS": "0,0.5,1,2,4,8,16,30,60",
    "NIGHTMILL_WEBHOOK_TIMEOUT_SECONDS": "5",
    "NIGHTMILL_MIN_FREE_BYTES": "0",
}

#: Queues without which nothing is done. Webhooks can wait.
_NEEDED = frozenset({Queue.PLAN, Queue.GENERATE})

_MODELS_FILE = f"""
models:
  {EMBED_MODEL}:
    source: {{urls: ["%s"]}}
    engine: http
    queue: {Queue.EMBED}
    endpoints: [/v1/embeddings]
    aliases: [{EMBED_ALIAS}]
  {CACHED_MODEL}:
    source: {{urls: ["%s"], model: {MODEL}}}
    engine: http
"""

#: Models of the generating engine that aliases may stand for besides.
_CANARIES = f"""
  {CANARY_MODEL}:
    source: {{urls: ["%s"], model: {CANARY}}}
    engine: http
  {BROKEN_MODEL}:
    source: {{urls: ["%s"], model: {BROKEN}}}
    engine: http
"""

#: The model of `trains`: its folder has a tokenizer, which examines training files.
_BASE = """
  stub-base:
    source: {path: base}
    engine: vllm
    queue: gpu.adapters
    engine_args: {enable_lora: true, max_loras: 3}
"""
_SLOW_STEPS = '{"seconds": 0.3}'
_STAND_IN = "python -m tests.support.idle_workers"


def watched(calls: Path) -> dict[str, str]:
    """Variables with which every Python process notes in `calls` whom it calls outside this machine."""
    calls.touch()
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{_WATCH}", "NIGHTMILL_TEST_CONNECTIONS": str(calls)}


def eventually(true: Callable[[], object], seconds: float, what: str, every: float = 0.05) -> None:
    """Wait until a condition holds, as `wait_for` does, but for `GRACE_SECONDS` at least."""
    wait_for(true, max(seconds, GRACE_SECONDS), what, every)


def wait_for(true: Callable[[], object], seconds: float, what: str, every: float = 0.05) -> None:
    """Wait until a condition holds, for `seconds` at most.

    Raises:
        TimeoutError: `what` was waited for in vain.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        pause(every)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def free_port() -> int:
    """Return a port below those that the kernel gives to outgoing connections, so that it stays free."""
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class StubEngine:
    """The stub server, kept running. `ended` has the moments at which it crashed or was killed."""

    def __init__(self, folder: Path, *models: str, delay_ms: float = 0.0) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = folder / f"{models[0]}.log"
        self.ended: list[float] = []
        self._output = folder / f"{models[0]}.out"
        self._options = ["--port", str(self.port), "--log", str(self.log), "--delay-ms", str(delay_ms)]
        self._options += ["--models", ",".join(models)]
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="stub-engine", daemon=True)

    def __enter__(self) -> "StubEngine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.kill()
        self._thread.join(30)

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    @property
    def ends(self) -> int:
        return len(self.ended)

    def heard(self) -> int:
        """Bytes of the log: they grow with each prompt."""
        return self.log.stat().st_size if self.log.exists() else 0

    def _keep(self) -> None:
        command = [sys.executable, "-m", "tests.support.stub_engine", *self._options]
        while not self._stop.is_set():
            with self._output.open("ab") as output:
                self._process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
                self._process.wait()
            self.ended += [] if self._stop.is_set() else [time.monotonic()]
            self._stop.wait(0.2)


class System:
    """Run one `nightmill up` on one data folder, which may be killed and started again."""

    def __init__(
        self,
        folder: Path,
        engine_url: str = "",
        embed_url: str = "",
        *,
        rivals: bool = False,
        trains: bool = False,
        canaries: bool = False,
        procfile: Path | None = None,
        root: Path = ROOT,
        **environment: str,
    ) -> None:
        """`root`: the checkout whose code it runs."""
        self._root = root
        self.data = folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ports = (self.port, free_port()) if rivals else (self.port,)
        self.process: subprocess.Popen[bytes] | None = None
        self._output = folder / "up.out"
        self._seen: dict[int, psutil.Process] = {}
        self._options = ["--data-dir", str(self.data), "--port", str(self.port)]
        self.clocks = folder / "clocks"  # see tests/support/clocks
        self.clocks.mkdir(parents=True, exist_ok=True)
        paths = {"PYTHONPATH": f"{root}{os.pathsep}{_SHIFTING}", "NIGHTMILL_TEST_CLOCKS": str(self.clocks)}
        paths["XDG_STATE_HOME"] = str(folder / "state")  # the user's own deployments are none of a test's
        self._environment = {**os.environ, **paths, **SCALED, **environment}
        if rivals:
            lines = folder / "Procfile"
            lines.write_text("\n".join(_with_rivals(root, self.ports[1], trains=trains)))
            self._options += ["--procfile", str(lines)]
        if procfile:
            self._options += ["--procfile", str(procfile)]
        if engine_url:
            models = folder / "models.yaml"
            more = (_BASE if trains else "") + (_CANARIES % (engine_url, engine_url) if canaries else "")
            models.write_text(_MODELS_FILE % (embed_url, engine_url) + more)
            self._options += ["--engine-url", engine_url, "--models", str(models)]
            self._options += [] if trains else ["--no-vllm"]
        if trains:
            command = [sys.executable, "-m", "tests.support.tiny_llama", str(folder / "base")]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    def start(self, seconds: float = 240.0) -> None:
        """Start it, and wait until it takes requests and its workers have joined."""
        with self._output.open("ab") as output:
            command = [sys.executable, "-m", "cli", "up", *self._options]
            self.process = subprocess.Popen(
                command, cwd=self._root, env=self._environment, stdout=output, stderr=output
            )
        eventually(self.ready, seconds, f"{self.data} is up")
        self.remember()

    def ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"`up` ended with {self.process.returncode}:\n{self._output.read_text()[-3000:]}")
        with suppress(httpx2.HTTPError):
            told = httpx2.get(f"{self.url}/statusz", timeout=2)
            if told.status_code == HTTPStatus.NOT_FOUND:  # an older version, from which an upgrade starts
                told = httpx2.get(f"{self.url}/readyz", timeout=2)
            return set(told.json()["workers"]) >= _NEEDED
        return False

    def stop(self, seconds: float = 90.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.remember()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def destroy(self) -> None:
        """Whatever is left goes, for the sake of the machine."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def run_file(self) -> dict[str, Any]:
        with suppress(FileNotFoundError, ValueError):
            return dict(json.loads((self.data / "run.json").read_text()))
        return {"processes": []}

    @property
    def api_key(self) -> str:
        return str(self.run_file()["api_key"])

    def table(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.run_file()["processes"]}

    def pid(self, name: str, seconds: float = 30.0) -> int:
        """Return the process id of a service; wait while it is being started again."""
        found: list[int] = []

        def runs() -> bool:
            pid = self.table().get(name, {}).get("pid")
            found[:] = [pid] if pid and psutil.pid_exists(pid) else []
            return bool(found)

        eventually(runs, seconds, f"{name} runs")
        return found[0]

    def tree(self, name: str) -> list[psutil.Process]:
        """Return a service's main process and all its descendants."""
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.pid(name))
            return [main, *main.children(recursive=True)]
        return []

    def guard(self) -> int:
        assert self.process is not None
        return self.process.pid

    def supervisor(self) -> int:
        return psutil.Process(self.guard()).children()[0].pid

    def named(self, service: str, title: str) -> list[psutil.Process]:
        """Descendants of a service that call themselves so."""
        return [process for process in self.tree(service)[1:] if title in " ".join(command(process))]

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """SIGSTOP a service with all its descendants, SIGCONT at the end (to those that still live)."""
        processes = self.tree(name)
        signal_all(processes, signal.SIGSTOP)
        try:
            yield
        finally:
            signal_all(processes, signal.SIGCONT)

    def remember(self) -> None:
        """Note every process that runs now."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.guard()).children(recursive=True):
                self._seen.setdefault(process.pid, process)

    def family(self) -> list[psutil.Process]:
        """Every live process that works for this folder: by its mark, or because it was seen among the children."""
        found = {process.pid: process for process in self._seen.values() if _lives(process)}
        mark = str(self.data)
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("NIGHTMILL_SUPERVISED") == mark and _lives(process):
                    found[process.pid] = process
        return list(found.values())

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Another command of `nightmill`, on this folder."""
        command = [sys.executable, "-m", "cli", *arguments, "--data-dir", str(self.data)]
        return subprocess.run(
            command, cwd=self._root, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )

    def logged(self, *events: str) -> Counter[str]:
        """Return how often the processes logged each of these events."""
        lines = (line for path in (self.data / "logs").glob("*.log") for line in path.read_text().splitlines())
        return Counter(event for line in lines for event in events if f'"event": "{event}"' in line)

    def errors(self) -> dict[str, list[str]]:
        """Per service, the events that it logged as errors, and tracebacks of no event."""
        return {path.stem: found for path in (self.data / "logs").glob("*.log") if (found := _errors(path))}


def rival(name: str) -> str:
    """Start a second service of this kind."""
    return f"{name}2"


def _with_rivals(root: Path, port: int, *, trains: bool) -> Iterator[str]:
    for line in (root / "Procfile").read_text().splitlines():
        name, _, command = line.partition(": ")
        if name == "finetune" and trains:
            yield f"{name}: FAKE_TRAINER={shlex.quote(_SLOW_STEPS)} {_STAND_IN} finetune"
            yield f"tuned: {_STAND_IN} tuned"
        elif name != "flower":
            yield line
        if name == "web":
            yield f"{rival(name)}: NIGHTMILL_PORT={port} {command}"
        elif name in ("dispatcher", "gpu"):
            yield f"{rival(name)}: {command}"


def signal_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def command(process: psutil.Process) -> list[str]:
    """Its words; none when it has ended meanwhile."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _errors(path: Path) -> list[str]:
    lines = path.read_text(errors="replace").splitlines()
    return [line[:LOG_LINE] for line in lines if '"level": "error"' in line or line.startswith("Traceback")]
