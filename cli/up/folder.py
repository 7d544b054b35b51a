"""The data folder of `nightmill up`: one supervisor at a time, and files that only their owner reads.

up.lock           held (flock) by the guard and the supervisor as long as either lives; names the guard
run.json          what runs now: url, flower_url, api_key, models_file, processes; gone after a clean stop
operator.key      the operator's own API key, made by the release step
console.links/    the links to the console that nobody has used, see `jobs.security.sign_in`
flower.password   for Flower's one user
logs/             one file per process
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.errors import CliError
from jobs.platform import processes
from jobs.platform.locks import FileLock
from jobs.security.sign_in import OPERATOR_KEY, create_token
from jobs.timings import Timings

RUN_FILE = "run.json"
FLOWER_PASSWORD = "flower.password"  # noqa: S105 (a file's name)
SUPERVISED = "NIGHTMILL_SUPERVISED"  # set for every process that `up` starts: its data folder
_LEAVING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Owner:
    """The last `nightmill up` of a data folder: the pid of its guard, with the start time that identifies it."""

    pid: int
    started: int
    boot_id: str
    host: str

    @property
    def lives(self) -> bool:
        """Return whether the process certainly runs: on this host, since this boot, with the same start time."""
        return self._is_here and self.boot_id == processes.boot_id() and processes.alive(self.pid, self.started)

    @property
    def has_ended(self) -> bool:
        """Return whether the process certainly ended. On another host that shares the folder it may still run."""
        return self._is_here and not self.lives

    @property
    def _is_here(self) -> bool:
        return self.host == processes.hostname()


class DataFolder:
    """A data folder, by its absolute path."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.run_file = self.path / RUN_FILE
        self._lock_file = self.path / "up.lock"
        self.logs = self.path / "logs"

    def make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CliError(f"cannot use {self.path} as the data folder: {error.strerror}") from error

    def lock(self) -> FileLock:
        """Lock the folder until every process with the lock has closed it. Raises CliError when it is locked."""
        lock = FileLock(self._lock_file)
        try:
            self._wait_for_lock(lock)
        except CliError:
            lock.close()
            raise
        host, pid, started = processes.me()
        self._lock_file.write_text(f"{pid} {started} {processes.boot_id()} {host}\n")
        return lock

    def _wait_for_lock(self, lock: FileLock) -> None:
        """Wait for the lock while the processes of a killed owner are being killed. A live owner keeps it."""
        deadline = time.monotonic() + _LEAVING_SECONDS
        while not lock.try_acquire():
            self.refuse_if_running()
            if time.monotonic() > deadline:
                raise self._already_running(self.owner())
            threading.Event().wait(0.05)

    def refuse_if_running(self) -> None:
        """Raise CliError when a `nightmill up` is running on this folder on this host."""
        owner = self.owner()
        if owner and owner.lives:
            raise self._already_running(owner)

    def _already_running(self, owner: Owner | None) -> CliError:
        url = self.read_run().get("url")
        where = f"{url}/v1, " if url else ""
        running = f"a deployment is already running on {self.path} ({where}pid {owner.pid if owner else 'unknown'})"
        return CliError(f"{running}; stop it with `nightmill down`, or use another --data-dir")

    def owner(self) -> Owner | None:
        """Return the last `nightmill up` of this folder, running or not; None when there was none."""
        try:
            pid, started, boot_id, host = self._lock_file.read_text().split()
            return Owner(int(pid), int(started), boot_id, host)
        except (OSError, ValueError):  # the file is empty while it is being written
            return None

    @property
    def is_running(self) -> bool:
        """Return whether a `nightmill up` works on this folder on this host now."""
        owner = self.owner()
        return owner is not None and owner.lives

    @property
    def was_started(self) -> bool:
        """Return whether a release step has ever run here."""
        return (self.path / OPERATOR_KEY).exists()

    def kill_leftovers(self) -> int:
        """Kill the processes that an earlier supervisor of this folder left; return their number.

        They are known by a variable in their environment. Programs that overwrite theirs are known by a session that
        `run.json` names, and by running the same interpreter.
        """
        sessions = self._recorded_sessions()
        leftovers = self._leftovers(sessions)
        total = len(leftovers)
        deadline = time.monotonic() + 5.0
        while leftovers and time.monotonic() < deadline:
            processes.kill(leftovers)
            threading.Event().wait(0.02)
            leftovers = self._leftovers(sessions)
        self.run_file.unlink(missing_ok=True)
        return total

    def _leftovers(self, sessions: Mapping[int, int]) -> set[int]:
        interpreter = processes.executable(os.getpid())
        table = {pid: process for pid, process in processes.table().items() if not process.zombie}
        roots = {
            pid
            for pid, process in table.items()
            if processes.environment(pid).get(SUPERVISED) == str(self.path)
            or (_member(process, sessions, table) and processes.executable(pid) == interpreter)
        }
        return processes.add_descendants(roots, table) - {os.getpid()}

    def _recorded_sessions(self) -> dict[int, int]:
        """Return the sessions of the last run with the start times of their leaders, if they are of this boot."""
        run = self.read_run()
        if run.get("boot_id") != processes.boot_id():
            return {}
        return {
            process["pid"]: process["started"]
            for process in run["processes"]
            if process.get("pid") and process.get("started")
        }

    def read_run(self) -> dict[str, Any]:
        """Return `run.json`, also that of a killed `up`; empty without one."""
        try:
            content = json.loads(self.run_file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def live_run(self) -> dict[str, Any]:
        """Return `run.json`, unless the `up` that wrote it has certainly ended: then empty."""
        run, owner = self.read_run(), self.owner()
        return {} if owner and (owner.has_ended or run.get("pid") != owner.pid) else run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace `run.json` as a whole."""
        self._write_private(self.run_file, json.dumps({**run, "boot_id": processes.boot_id()}, indent=2))

    def operator_key(self) -> str:
        """Return the operator's key, empty before the first release step."""
        path = self.path / OPERATOR_KEY
        return path.read_text().strip() if path.exists() else ""

    def console_link(self, console: str, timings: Timings = Timings()) -> str:
        """Return a link that signs a browser in to the console at this URL, once."""
        return f"{console}#token={create_token(self.path, timings.sign_in_link)}"

    def browser_line(self, url: str, console: str, *, linked: bool) -> str:
        """Return the line of `up` for a browser. `console` is its path, if there is one; `linked` adds a sign-in."""
        if not console:
            return f"in a browser: {url}/ (chat, API reference)"
        if linked:
            return f"console: {self.console_link(url + console)}"
        return f"console: {url}{console} (`nightmill console` prints a link that signs in)"

    def flower_password(self) -> str:
        """Return Flower's password. The first call creates it."""
        path = self.path / FLOWER_PASSWORD
        if not path.exists():
            self._write_private(path, secrets.token_urlsafe(18))
        return path.read_text().strip()

    def _write_private(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(text + "\n")
        temporary.replace(path)


def _member(process: processes.Process, sessions: Mapping[int, int], table: Mapping[int, processes.Process]) -> bool:
    """Return whether the process belongs to a recorded session, and not to a later one of the same number."""
    started = sessions.get(process.session)
    if started is None or process.started < started:
        return False
    leader = table.get(process.session)
    return leader is None or leader.started == started
