"""The data folder of `nightmill up`: one supervisor at a time, and files that only their owner reads.

up.lock           held (flock) by the guard and the supervisor as long as either lives; names the guard
run.json          what runs now: url, flower_url, api_key, models_file, processes; gone after a clean stop
operator.key      the operator's own API key, made by the release step
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

from cli.errors import Trouble
from jobs.platform import processes
from jobs.platform.locks import FileLock

RUN_FILE = "run.json"
OPERATOR_KEY = "operator.key"
FLOWER_PASSWORD = "flower.password"  # noqa: S105 (a file's name)
SUPERVISED = "NIGHTMILL_SUPERVISED"  # in the environment of everything that `up` starts: the folder it works for
_LEAVING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Owner:
    """The `nightmill up` that locked a data folder last: its guard, told apart from whoever has its pid later."""

    pid: int
    started: int
    boot_id: str
    host: str

    @property
    def lives(self) -> bool:
        """Return whether it certainly runs: on this host, since this boot, as the process that it was."""
        return self._is_here and self.boot_id == processes.boot_id() and processes.alive(self.pid, self.started)

    @property
    def was_removed(self) -> bool:
        """Return whether it certainly ended. Nothing is certain about another host that shares the folder."""
        return self._is_here and not self.lives

    @property
    def _is_here(self) -> bool:
        return self.host == processes.hostname()


class DataFolder:
    """One data folder, by its absolute path."""

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
            raise Trouble(f"cannot use {self.path} as the data folder: {error.strerror}") from error

    def lock(self) -> FileLock:
        """Own the folder until the returned lock is closed in every process that has it. Raises Trouble when taken."""
        lock = FileLock(self._lock_file)
        try:
            self._wait_for_lock(lock)
        except Trouble:
            lock.close()
            raise
        host, pid, started = processes.me()
        self._lock_file.write_text(f"{pid} {started} {processes.boot_id()} {host}\n")
        return lock

    def _wait_for_lock(self, lock: FileLock) -> None:
        """A live owner keeps the folder; one that was killed is waited for while what it left is being killed."""
        deadline = time.monotonic() + _LEAVING_SECONDS
        while not lock.try_acquire():
            self.refuse_if_running()
            if time.monotonic() > deadline:
                raise self._taken(self.owner())
            threading.Event().wait(0.05)

    def refuse_if_running(self) -> None:
        """Raises Trouble when a `nightmill up` works on this folder on this host now."""
        owner = self.owner()
        if owner and owner.lives:
            raise self._taken(owner)

    def _taken(self, owner: Owner | None) -> Trouble:
        url = self.read_run().get("url")
        where = f"{url}/v1, " if url else ""
        running = f"nightmill is already running on {self.path} ({where}pid {owner.pid if owner else 'unknown'})"
        return Trouble(f"{running}; stop it with `nightmill down`, or use another --data-dir")

    def owner(self) -> Owner | None:
        """Return the last `nightmill up` of this folder, whether it still runs or not; None when there was none."""
        try:
            pid, started, boot_id, host = self._lock_file.read_text().split()
            return Owner(int(pid), int(started), boot_id, host)
        except (OSError, ValueError):  # a file that is just being written has no words
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
        """Kill what an earlier supervisor of this folder left running; returns how many processes that were.

        They are known by the mark in their environment. Some programs overwrite that with a title: these are known
        by the sessions that `run.json` still names, and by running the same interpreter.
        """
        sessions = self._recorded_sessions()
        found = self._leftovers(sessions)
        total = len(found)
        deadline = time.monotonic() + 5.0
        while found and time.monotonic() < deadline:
            processes.kill(found)
            threading.Event().wait(0.02)
            found = self._leftovers(sessions)
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
        return processes.with_descendants(roots, table) - {os.getpid()}

    def _recorded_sessions(self) -> dict[int, int]:
        """Sessions of the last run by the start time of their leader, if this boot has seen them."""
        run = self.read_run()
        if run.get("boot_id") != processes.boot_id():
            return {}
        return {one["pid"]: one["started"] for one in run["processes"] if one.get("pid") and one.get("started")}

    def read_run(self) -> dict[str, Any]:
        """Return what `run.json` says, also what a killed `up` has left there; empty without one."""
        try:
            found = json.loads(self.run_file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def live_run(self) -> dict[str, Any]:
        """Return what `run.json` says, unless the `up` that wrote it is known to have ended: empty then."""
        run, owner = self.read_run(), self.owner()
        return {} if owner and (owner.was_removed or run.get("pid") != owner.pid) else run

    def write_run(self, facts: Mapping[str, Any]) -> None:
        """Replace `run.json` as a whole."""
        self._write_private(self.run_file, json.dumps({**facts, "boot_id": processes.boot_id()}, indent=2))

    def operator_key(self) -> str:
        """The operator's key; empty before the first release step."""
        path = self.path / OPERATOR_KEY
        return path.read_text().strip() if path.exists() else ""

    def flower_password(self) -> str:
        """Flower's password, made at the first call."""
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
    """Whether the process belongs to a recorded session, whose number nobody else has taken since."""
    started = sessions.get(process.session)
    if started is None or process.started < started:
        return False
    leader = table.get(process.session)
    return leader is None or leader.started == started
