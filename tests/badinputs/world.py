"""The deployment that bad inputs are sent to, and its state as seen from outside.

World ──▶ web, a process on a real socket ◀── Asker: notes every answer and how long it took
      ──▶ mill, a process that plans, runs and delivers
      ──▶ canary, a listener inside that nobody should ever reach
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import httpx2
import psutil
from sqlalchemy import func, select

from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.files.tables import File, Upload, UploadPart
from jobs.fleet.tables import Worker
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue
from jobs.schedules.tables import Schedule
from jobs.security import keys
from jobs.security.tables import Idempotency
from jobs.webhooks.tables import WebhookEndpoint
from tests.support.receiver import certificate
from tests.support.system import ROOT, eventually, free_port

_CREATED = (File, Upload, UploadPart, Job, Schedule, WebhookEndpoint, Idempotency)
_ERROR = {"message", "type", "param", "code"}
_UP_SECONDS = 240.0
T = TypeVar("T")
C = TypeVar("C", bound=AbstractContextManager[Any])


class Asker(httpx2.Client):
    """A client of one key that notes status and seconds of each answer."""

    def __init__(self, url: str, key: str | None, noted: list[tuple[int, float]]) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        super().__init__(base_url=url, headers=headers, timeout=120, trust_env=False)
        self._noted = noted

    def request(self, *arguments: Any, **options: Any) -> httpx2.Response:
        began = time.perf_counter()
        answer = super().request(*arguments, **options)
        self._noted.append((answer.status_code, time.perf_counter() - began))
        return answer


class Canary:
    """Listens on every address of this machine that is inside, and counts who comes."""

    def __init__(self) -> None:
        first = socket.create_server(("127.0.0.1", 0))
        self.port = int(first.getsockname()[1])
        self.listeners = [first, *self._on_ipv6()]
        self.connections = 0
        for listener in self.listeners:
            threading.Thread(target=self._count, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()

    def _on_ipv6(self) -> Iterator[socket.socket]:
        try:
            yield socket.create_server(("::1", self.port), family=socket.AF_INET6)
        except OSError as error:  # then nobody can reach it there either
            print(f"no canary on ::1: {error}", file=sys.stderr)

    def _count(self, listener: socket.socket) -> None:
        while listener.fileno() >= 0:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            self.connections += 1
            connection.close()


class Process:
    """A process of the deployment, with its log and its memory."""

    def __init__(self, role: str, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            command = [sys.executable, "-m", "tests.badinputs.host", role]
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raise an error when the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with {self._process.returncode}:\n{self.log.read_text()[-3000:]}")

    def begin(self) -> int:
        """Bytes in memory now; the peak is counted from here."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def peak(self) -> int:
        return self._status("VmHWM")

    def children_peak(self) -> int:
        """Return the peak memory of its children, which come and go; 0 when there are none."""
        found = [0]
        for child in psutil.Process(self._process.pid).children():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                found.append(_status_of(child.pid, "VmHWM"))
        return max(found)

    def _status(self, name: str) -> int:
        self.check()
        return _status_of(self._process.pid, name)


def _status_of(pid: int, name: str) -> int:
    """Return the memory in bytes; 0 for a process that is dead and not yet reaped."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


class World:
    """A web process and a deployment over one data folder, and clients of two projects.

    `settings` as the environment has. What may take some seconds may take `margin` times as many.
    """

    def __init__(
        self, folder: Path, *, full: bool = False, margin: float = 1.0, inline: bool = True, **settings: str
    ) -> None:
        self.folder, self.full, self.margin = folder, full, margin
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        self.noted: list[tuple[int, float]] = []
        self.tls, _ = certificate(folder, "*.example.com")
        self.canary = Canary()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            **os.environ,
            "NIGHTMILL_DATA_DIR": str(self.data),
            "NIGHTMILL_PORT": str(self.port),
            "SSL_CERT_FILE": str(folder / "receiver.pem"),
            "NIGHTMILL_MIN_FREE_BYTES": "0",
            "NIGHTMILL_WRONG_KEYS_PER_MINUTE": "1000000",
            "NIGHTMILL_WEBHOOK_RETRY_SECONDS": "0",
            "NIGHTMILL_WEBHOOK_TIMEOUT_SECONDS": "1",
            "BAD_INPUTS_PORTS": json.dumps([self.canary.port]),
            **({} if full else {"BAD_INPUTS_IDLE_SECONDS": "1.5", "BAD_INPUTS_HEAD_SECONDS": "1.5"}),
            **{f"NIGHTMILL_{name.upper()}": value for name, value in settings.items()},
        }
        self.idle_seconds, self.head_seconds = (60.0, 20.0) if full else (1.5, 1.5)
        migrate(f"sqlite:///{self.data / 'nightmill.db'}")
        self.db = Database(f"sqlite:///{self.data / 'nightmill.db'}", patience=30)
        self.storage = DiskStorage(self.data / "files")
        self.key, self.other_key = (self.make_key(name, manages=True) for name in ("ours", "theirs"))
        self.processes: dict[str, Process] = {}
        self._made: dict[str, Any] = {}
        self._clients = ExitStack()
        self.client = self.asker(self.key)
        self.stranger = self.asker(self.other_key)
        self.nobody = self.asker(None)
        for role in ("web", "inline") if inline else ("web",):
            self._start(role)
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()
        for process in self.processes.values():
            process.stop()
        self.db.close()
        self.canary.close()

    def asker(self, key: str | None) -> Asker:
        return self._clients.enter_context(Asker(self.url, key, self.noted))

    def make_key(self, project: str, *, manages: bool = False) -> str:
        with self.db.write() as session:
            return keys.create_key(session, project, manages=manages)

    def restart_web(self) -> None:
        self.processes["web"].stop()
        self._start("web")
        self._wait()

    def log(self) -> str:
        return "".join(process.log.read_text(errors="replace") for process in self.processes.values())

    def created(self) -> dict[str, int]:
        """Rows of what a request can create, and stored files."""
        with self.db.read() as session:
            found = {one.__tablename__: session.scalar(select(func.count()).select_from(one)) or 0 for one in _CREATED}
        return found | {"stored": sum(path.is_file() for path in (self.data / "files").rglob("*"))}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` returns, which is called by the first case only."""
        if name not in self._made:
            self._made[name] = make()
        return cast(T, self._made[name])

    def keep(self, thing: C) -> C:
        """Enter a context that is left with this world."""
        self._clients.enter_context(thing)
        return thing

    def eventually(self, true: Callable[[], object], what: str, seconds: float = 60.0, every: float = 0.03) -> None:
        def reached() -> object:
            for process in self.processes.values():
                process.check()
            return true()

        eventually(reached, seconds, what, every=every)

    # -- what clients do

    def upload(
        self, content: Any, name: str = "a.jsonl", client: Asker | None = None, purpose: str = "batch"
    ) -> httpx2.Response:
        files = {"file": (name, content)}
        return (client or self.client).post("/v1/files", files=files, data={"purpose": purpose})

    def submit(self, content: Any, endpoint: str = "/v1/chat/completions", **fields: Any) -> str:
        """Create a batch over these bytes (or this open file), and return its id."""
        file_id = self.upload(content).json()["id"]
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", **fields}
        return str(self.client.post("/v1/batches", json=body).json()["id"])

    def ended(self, batch_id: str, client: Asker | None = None, seconds: float = 240.0) -> dict[str, Any]:
        """Return the batch when it has ended."""
        found: dict[str, Any] = {}

        def over() -> bool:
            found.update((client or self.client).get(f"/v1/batches/{batch_id}").json())
            return found["status"] in ("completed", "failed", "expired", "cancelled")

        self.eventually(over, f"the end of {batch_id}", seconds)
        return found

    def idle(self) -> bool:
        """Return whether every job has ended."""
        with self.db.read() as session:
            return session.scalar(select(Job.id).where(Job.state.in_(LIVE)).limit(1)) is None

    def raw(self, sent: bytes | Iterable[bytes], *, wait: float = 5.0, half_close: bool = False) -> bytes:
        """Send bytes over a socket of one's own; whatever is answered until the other side closes or `wait` is over."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            for piece in [sent] if isinstance(sent, bytes) else sent:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(_received(connection, time.monotonic() + wait))

    def _start(self, role: str) -> None:
        self.processes[role] = Process(role, self.folder / f"{role}.log", self._environment)

    def _wait(self) -> None:
        def up() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        self.eventually(up, "the web process listens", _UP_SECONDS)
        self.nobody.get("/openapi.json").raise_for_status()  # composed once, in more time than an answer may take
        if "inline" in self.processes:
            self.eventually(self._works, "the deployment's workers have joined", _UP_SECONDS)

    def _works(self) -> bool:
        """Wait until the ingestion worker works, which joins last."""
        with self.db.read() as session:
            return any(Queue.EMBED in queues for queues in session.scalars(select(Worker.queues)))


def _received(connection: socket.socket, until: float) -> Iterator[bytes]:
    while (left := until - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(65_536)
        except (TimeoutError, ConnectionResetError):
            return
        if not data:
            return
        yield data


def said(answer: httpx2.Response) -> str:
    """Status and code, provided that an error has OpenAI's shape."""
    if answer.status_code < 300:
        return str(answer.status_code)
    return _said(answer.status_code, answer.content)


def raw_said(answer: bytes) -> str:
    """Return the same fields of an answer that came over a socket; an empty text when nothing came."""
    found = []
    while answer.startswith(b"HTTP/1.1 "):
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lengths = [
            line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        ]
        length = int(lengths[0]) if lengths else len(rest)
        found.append(str(status) if status < 300 else _said(status, rest[:length]))
        answer = rest[length:]
    return ", ".join(found) if not answer else f"{found} and {answer[:40]!r}"


def _said(status: int, content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without OpenAI's shape"
    if set(error) != _ERROR or not all(isinstance(error[name], str) for name in ("message", "type")):
        return f"{status} without OpenAI's shape"
    return f"{status} {error['code'] or 'without a code'}"


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work` in so many threads that begin together, and return the results."""
    gate = threading.Barrier(count)

    def begin(n: int) -> Any:
        gate.wait(30)
        return work(n)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))
