"""The cost that each attack of one API key has for another project.

    Deployment: `nightmill up` of a checkout ──▶ stub engine, embedded Valkey
       ▲                        ▲
    attacker's process       probes of the other project: create a batch, /livez, chat, stream, embedding

Each attack gets a fresh deployment, since memory that was once taken is seldom given back. Measured around it are the
peak memory of the web process and of the broker, the bytes that the web process wrote to the disk (none where TMPDIR is
a tmpfs), and the bytes that the data folder grew by. The verdict says whether the others went on, by generous bounds.
"""

import json
import multiprocessing
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from tests.badinputs.attacks import EMBEDDINGS, SLOW_NAME_SECONDS, Attack, Attacker
from tests.support.stub_engine import TRICKLE
from tests.support.system import MODEL, ROOT, StubEngine, System, eventually

MIB = 1 << 20
MOST_SECONDS = 10.0  # for any answer that another project waits for, but for a stream of its own
MOST_WEB, MOST_BROKER = 400 * MIB, 200 * MIB  # growth; the embedded broker has 512 MiB in all
_EVERY_SECONDS = 0.25  # between two probes of a kind
_PROBE_SECONDS = 60.0  # after which an answer is lost
_STREAMS = 4
_STREAM_EVENTS = 150  # half a minute
_NAMES = ROOT / "tests" / "support" / "names"
_IDLE = frozenset({"flower", "io"})  # services that no attack asks anything of


@dataclass(slots=True)
class Noted:
    """The answers to one kind of probe: seconds of each, and what was wrong with those that were lost."""

    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def slowest(self) -> float:
        return max(self.seconds, default=0.0)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one attack on one checkout. Sizes are in bytes."""

    attack: Attack
    code: str
    answered: str
    probes: Mapping[str, Noted]
    web: int
    broker: int
    written: int
    stored: int
    wrong: tuple[str, ...]


class Deployment:
    """`nightmill up` of one checkout over a stub engine, with a key of each of two projects.

    `embeds`: with a worker that has the packaged model, which takes a while to start.
    """

    def __init__(self, folder: Path, root: Path, *, embeds: bool, **settings: str) -> None:
        self.root = root
        self._models = ("chat", "embedding") if embeds else ("chat",)
        idle = _IDLE if embeds else _IDLE | {"embed"}
        lines = (root / "Procfile").read_text().splitlines()
        folder.mkdir(parents=True, exist_ok=True)
        procfile = folder / "Procfile"
        procfile.write_text("\n".join(line for line in lines if line.partition(":")[0] not in idle))
        self._engine = StubEngine(folder, MODEL)
        environment = {  # the defaults of the product where they differ from those of `System`
            "PYTHONPATH": f"{root}:{_NAMES}",
            "NIGHTMILL_TEST_SLOW_NAMES": f"{SLOW_NAME_SECONDS:g}",
            "NIGHTMILL_VLLM_ENABLED": "false",
            "NIGHTMILL_ENGINE_URLS": self._engine.url,
            "NIGHTMILL_ENGINE_CONCURRENCY": "256",
            "NIGHTMILL_ENGINE_TIMEOUT_SECONDS": "120",
            "NIGHTMILL_LEASE_SECONDS": "30",
            **settings,
        }
        self.system = System(folder, root=root, procfile=procfile, **environment)

    def __enter__(self) -> "Deployment":
        self._engine.__enter__()
        try:
            self.system.start(240)
            self.key, self.other_key = self._key("attacker"), self._key("other")
            eventually(self._answers, 240, "the models answer", every=0.5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.system.stop(20)
        self.system.destroy()
        self._engine.__exit__()

    def other(self) -> httpx2.Client:
        """Return a client of the other project, which sends no attack."""
        headers = {"Authorization": f"Bearer {self.other_key}"}
        return httpx2.Client(base_url=self.system.url, headers=headers, timeout=_PROBE_SECONDS, trust_env=False)

    def process(self, service: str) -> psutil.Process:
        return psutil.Process(self.system.pid(service))

    def stored(self) -> int:
        """Bytes of all files in the data folder."""
        total = 0
        for path in self.system.data.rglob("*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _key(self, project: str) -> str:
        made = self.system.cli("keys", "create", "--project", project)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def _answers(self) -> bool:
        """Return whether the models answer the other project."""
        with self.other() as client:
            return all(_PROBES[name](client, "").status_code == 200 for name in self._models)


class Probes:
    """The requests that another project repeats during an attack: each kind in a thread of its own."""

    def __init__(self, deployment: Deployment, kinds: tuple[str, ...]) -> None:
        self.noted = {kind: Noted() for kind in ("create", "livez", *kinds)}
        self._deployment = deployment
        self._over = threading.Event()
        self._input = ""
        self._begun = threading.Semaphore(0)  # once for each stream that has begun

    def __enter__(self) -> "Probes":
        with self._deployment.other() as client:
            line = {"custom_id": "a", "method": "POST", "url": _CHAT, "body": _chat("A word.")}
            form = {"files": {"file": ("a.jsonl", json.dumps(line).encode())}, "data": {"purpose": "batch"}}
            self._input = str(client.post("/v1/files", **form).raise_for_status().json()["id"])
        kinds = [kind for kind in self.noted if kind != "stream"]
        self._threads = [threading.Thread(target=self._repeat, args=(kind,), daemon=True) for kind in kinds]
        if "stream" in self.noted:
            self._threads += [threading.Thread(target=self._stream, daemon=True) for _ in range(_STREAMS)]
        for thread in self._threads:
            thread.start()
        for _ in range(_STREAMS if "stream" in self.noted else 0):
            assert self._begun.acquire(timeout=_PROBE_SECONDS), "a stream does not begin"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * _PROBE_SECONDS)

    def _repeat(self, kind: str) -> None:
        noted = self.noted[kind]
        with self._deployment.other() as client:
            while not self._over.wait(_EVERY_SECONDS):
                began = time.monotonic()
                try:
                    status = _PROBES[kind](client, self._input).status_code
                    noted.lost += [str(status)] if status != 200 else []
                except httpx2.HTTPError as error:
                    noted.lost.append(type(error).__name__)
                noted.seconds.append(time.monotonic() - began)

    def _stream(self) -> None:
        """Read one stream that began before the attack; it is lost unless it comes to its end."""
        noted = self.noted["stream"]
        body = {**_chat(f"{TRICKLE} {_STREAM_EVENTS}"), "stream": True}
        said, began = b"", time.monotonic()
        try:
            with self._deployment.other() as client, client.stream("POST", _CHAT, json=body) as answer:
                for piece in answer.iter_raw():
                    self._begun.release() if not said else None
                    said += piece
        except httpx2.HTTPError as error:
            noted.lost.append(type(error).__name__)
        else:
            codes = re.findall(rb'"code":"(\w+)"', said)
            noted.lost += [] if b"[DONE]" in said else [codes[-1].decode() if codes else "cut"]
        noted.seconds.append(time.monotonic() - began)


@contextmanager
def attackers() -> Iterator[Callable[[Attack, Attacker], str]]:
    """Give a function that runs an attack in a process of its own and returns what the attacker was answered."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield lambda attack, attacker: process.submit(attack.run, attacker).result(timeout=600)


def cost(
    attack: Attack,
    deployment: Deployment,
    run: Callable[[Attack, Attacker], str],
    dose: float = 1.0,
    most_seconds: float = MOST_SECONDS,
) -> Cost:
    """Attack a deployment, and measure what the other project noticed and what the attack used up."""
    web, broker = deployment.process("web"), deployment.process("broker")
    began = {process.pid: _begin(process) for process in (web, broker)}
    written, stored = web.io_counters().write_bytes, deployment.stored()
    with Probes(deployment, attack.probes) as probes:
        answered = run(attack, Attacker(deployment.system.url, deployment.key, dose))
    try:
        grown = {process.pid: _status(process, "VmHWM") - began[process.pid] for process in (web, broker)}
        written = web.io_counters().write_bytes - written
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return Cost(attack, code(deployment.root), answered, probes.noted, 0, 0, 0, 0, ("a process ended",))
    sizes = {"web": grown[web.pid], "broker": grown[broker.pid], "written": written}
    found = wrong(attack, probes.noted, sizes, dose, most_seconds)
    stored = deployment.stored() - stored
    return Cost(attack, code(deployment.root), answered, probes.noted, **sizes, stored=stored, wrong=tuple(found))


def costs(attack: Attack, root: Path, dose: float = 1.0) -> Cost:
    """Measure the cost of one attack on a fresh deployment of a checkout."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightmill-")))
        run = stack.enter_context(attackers())
        embeds = "embedding" in attack.probes
        deployment = stack.enter_context(Deployment(folder, root, embeds=embeds, **dict(attack.settings)))
        return cost(attack, deployment, run, dose)


def code(root: Path) -> str:
    """Return the commit of a checkout, or its folder's name where it has none."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout.strip() or root.name


HEAD = (
    "| attack | code | attacker got | create p50/max s | livez max s | others max s | lost "
    "| web +MB | broker +MB | written MB | stored MB | the others went on |\n"
    "|---|---|---|---:|---:|---|---:|---:|---:|---:|---:|---|"
)


def row(cost: Cost) -> str:
    create, livez = cost.probes["create"], cost.probes["livez"]
    others = {kind: noted for kind, noted in cost.probes.items() if kind not in ("create", "livez")}
    lost = sum(len(noted.lost) for noted in cost.probes.values())
    cells = (
        cost.attack.what,
        cost.code,
        cost.answered,
        f"{create.median:.2f} / {create.slowest:.2f}",
        f"{livez.slowest:.2f}",
        ", ".join(f"{kind} {noted.slowest:.2f}" for kind, noted in others.items()),
        f"{lost} of {sum(len(noted.seconds) for noted in cost.probes.values())}",
        *(f"{size / MIB:.0f}" for size in (cost.web, cost.broker, cost.written, cost.stored)),
        "**" + "; ".join(cost.wrong) + "**" if cost.wrong else "yes",
    )
    return "| " + " | ".join(cells) + " |"


def wrong(
    attack: Attack,
    probes: Mapping[str, Noted],
    sizes: Mapping[str, int],
    dose: float,
    most_seconds: float = MOST_SECONDS,
) -> Iterator[str]:
    """Name each bound that an attack of this dose has broken. `sizes`: bytes by `web`, `broker` and `written`."""
    for kind, noted in probes.items():
        if noted.lost:
            yield f"{kind} lost {len(noted.lost)} ({', '.join(sorted(set(noted.lost)))})"
        if not noted.seconds:
            yield f"no {kind} was answered"
        if kind != "stream" and noted.slowest > most_seconds:
            yield f"{kind} took {noted.slowest:.0f} s"
    bounds = {"web": MOST_WEB, "broker": MOST_BROKER, "written": attack.written * max(1.0, dose)}
    for name, size in sizes.items():
        if size > bounds[name]:
            yield f"{name} {size / MIB:.0f} MB"


def _begin(process: psutil.Process) -> int:
    """Count the peak of a process's memory from here; return the bytes that it has now."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return _status(process, "VmRSS")


def _status(process: psutil.Process, name: str) -> int:
    """Return one size of /proc/PID/status in bytes. Raises NoSuchProcess when the process has been replaced."""
    if not process.is_running():
        raise psutil.NoSuchProcess(process.pid)
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _chat(text: str) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def _create(client: httpx2.Client, file_id: str) -> httpx2.Response:
    body = {"input_file_id": file_id, "endpoint": _CHAT, "completion_window": "24h"}
    return client.post("/v1/batches", json=body)


def _embed(client: httpx2.Client, _: str) -> httpx2.Response:
    """Embed two words that were not embedded before, since vectors are cached."""
    return client.post("/v1/embeddings", json={"model": EMBEDDINGS, "input": f"word {time.monotonic_ns()}"})


_CHAT = "/v1/chat/completions"
_PROBES: Mapping[str, Callable[[httpx2.Client, str], httpx2.Response]] = {
    "create": _create,
    "livez": lambda client, _: client.get("/livez"),
    "chat": lambda client, _: client.post(_CHAT, json=_chat("Two words.")),
    "embedding": _embed,
}
