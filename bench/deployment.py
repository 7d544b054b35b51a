"""Start a deployment to measure: `nightmill up` with some lines of a Procfile, and meters of its processes."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from openai import OpenAI

from cli.demo.system import System, running
from cli.up import readiness
from cli.up.procfile import CODE

_READY_SECONDS = 600.0
_LOOK_SECONDS = 0.5
MB = 1 << 20
#: The metadata of fine-tuning jobs and evals that a run or an example creates, by which a later run knows them.
MARK = {"made_by": "nightmill demo"}
LIVE = ("validating", "in_progress", "finalizing", "cancelling")
LIVE_RUN = ("queued", "in_progress")

Endpoint = Literal["/v1/chat/completions", "/v1/embeddings"]


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch that succeeded: the job as the API shows it, and the seconds of each phase."""

    job: Mapping[str, Any]
    planning: float
    running: float
    finishing: float

    @property
    def seconds(self) -> float:
        return self.planning + self.running + self.finishing


class Deployment:
    """A running deployment with a client and meters."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.client = OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, timeout=600)
        self.engine_url = ""  # the stub server, if `gpu` sends requests to one

    def project(self, name: str) -> OpenAI:
        """Return a client with a key of another project."""
        command = [sys.executable, "-m", "cli", "keys", "create", "--project", name]
        command += ["--data-dir", str(self.system.folder.path)]
        key = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        return OpenAI(base_url=f"{self.system.url}/v1", api_key=key, timeout=600)

    def wait_for(self, queue: str, seconds: float = _READY_SECONDS) -> None:
        """Wait until a worker takes work from the queue."""
        deadline = time.monotonic() + seconds
        while not (readiness.look(self.system.url) or {}).get("workers", {}).get(queue):
            self.system.check()
            assert time.monotonic() < deadline, f"nobody serves {queue}"
            threading.Event().wait(0.3)

    def cancel_live(self) -> None:
        """Cancel the fine-tuning jobs and the runs of evals that an interrupted run has left."""
        for job in self.client.fine_tuning.jobs.list(limit=100, metadata=MARK):
            if job.finished_at is None:
                self.client.fine_tuning.jobs.cancel(job.id)
        for row in self.client.evals.list(order="desc", limit=20).data:
            for run in self.client.evals.runs.list(row.id) if row.metadata == MARK else ():
                if run.status in LIVE_RUN:
                    self.client.evals.runs.cancel(run.id, eval_id=row.id)

    def upload(self, path: Path) -> str:
        with path.open("rb") as handle:
            return self.client.files.create(file=handle, purpose="batch").id

    def run(
        self,
        file_id: str,
        *,
        killing: bool = False,
        endpoint: Endpoint = "/v1/chat/completions",
        every: float = _LOOK_SECONDS,
        seen: Callable[[str], None] = lambda _: None,
    ) -> Finished:
        """Run one batch to its end. Unless the caller is `killing` processes, none may keep exiting.

        The client requests the state `every` so many seconds, and calls `seen` with each status.

        Raises:
            AssertionError: the batch does not succeed.
        """
        batch = self.client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h")
        while batch.status in LIVE:
            threading.Event().wait(every)
            if not killing:
                self.system.check()
            batch = self.client.batches.retrieve(batch.id)
            seen(batch.status)
        job: Any = self.client.get(f"/jobs/{batch.id}", cast_to=object)
        assert job["status"] == "completed", job
        assert job["progress"]["failed"] == 0, job
        return Finished(job, *self._phases(batch.id))

    def _phases(self, job_id: str) -> tuple[float, float, float]:
        """Return the seconds of each phase from the ledger, in microseconds; the API rounds to seconds."""
        with closing(sqlite3.connect(self.system.folder.path / "nightmill.db")) as database:
            [times] = database.execute(
                "SELECT created_at, in_progress_at, finalizing_at, completed_at FROM job WHERE id = ?", (job_id,)
            )
        created, began, ended, completed = times
        return began - created, ended - began, completed - ended

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return the processes of each line of the Procfile."""
        found = {}
        for one in self.system.folder.read_run()["processes"]:
            leader = psutil.Process(one["pid"])
            found[one["name"]] = [leader, *leader.children(recursive=True)]
        return found

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by line of the Procfile."""
        return {name: sum(map(_cpu, group)) for name, group in self.groups().items()}

    def forget_peaks(self) -> None:
        """Reset the kernel's records of peak memory."""
        for group in self.groups().values():
            for process in group:
                with suppress(OSError):
                    Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peaks(self) -> dict[str, int]:
        """Return the peak memory in bytes of the largest process of each line, since `forget_peaks`."""
        return {name: max(map(_peak, group)) for name, group in self.groups().items()}


def _cpu(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _peak(process: psutil.Process) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def make_folder(text: str) -> Path:
    """Return the folder that an option names. It is made where it is missing."""
    folder = Path(text)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def deployed(
    folder: Path,
    lines: Mapping[str, str] | Sequence[str],
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    data_dir: Path | None = None,
) -> Iterator[Deployment]:
    """Yield a deployment of the named lines of the checkout's Procfile, or of the given lines.

    Its data lies in `folder`, too, unless `data_dir` names another folder.
    """
    known = dict(line.split(": ", 1) for line in (CODE / "Procfile").read_text().splitlines() if ": " in line)
    chosen = lines if isinstance(lines, Mapping) else {name: known[name] for name in lines}
    folder.mkdir(parents=True, exist_ok=True)
    procfile = folder / "Procfile"
    everything = {"release": known["release"], **{name: line or known[name] for name, line in chosen.items()}}
    procfile.write_text("".join(f"{name}: {line}\n" for name, line in everything.items()))
    words = ["--procfile", str(procfile), *options]
    with running(
        data_dir or folder / "data", words, {"NIGHTMILL_LOG_LEVEL": "WARNING", **(environment or {})}
    ) as system:
        system.wait_until_ready()
        yield Deployment(system)


def chats(path: Path, count: int, model: str, **body: Any) -> None:
    """Write a batch file of `count` small chats."""
    with path.open("w") as handle:
        for n in range(count):
            messages = [{"role": "user", "content": f"Question {n}: {'what is the weather like today? ' * 4}"}]
            request = {"model": model, "messages": messages, **body}
            line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": request}
            handle.write(json.dumps(line) + "\n")
