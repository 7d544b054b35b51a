"""Run one supervised process: start it, record its exits, and start it again.

waiting --start--> running --exit--> waiting   (after 0.2 s, then twice as long each time, up to 15 s)
                      |                 ^
                      +--stop--> stopping --exit--> stopped
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from jobs.platform import processes

FIRST_DELAY = 0.2  # seconds before a process that ended is started again
MAX_DELAY = 15.0
SETTLED = 30.0  # seconds of life after which the delay starts from the beginning
_NOT_STARTED = 127
_SHIM = Path(__file__).with_name("child.py")


class State(StrEnum):
    """The state of a service."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Program:
    """The command of a service, with its environment, folder and log."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path


def next_delay(previous: float, lived: float) -> float:
    """Return the seconds until the next start, from the last delay (0: none yet) and the process's lifetime."""
    if previous == 0 or lived >= SETTLED:
        return FIRST_DELAY
    return min(previous * 2, MAX_DELAY)


class Service:
    """A process and its restarts. The supervisor's loop calls every method."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.name = program.name
        self.log = LogFile(program.log)
        self.state = State.WAITING
        self.pid = 0
        self.started = 0  # clock ticks since boot
        self.restarts = 0
        self.due = 0.0  # monotonic time of the next start
        self.code: int | None = None  # exit code; negative: the signal
        self.delay = 0.0
        self.refused = ""  # why the last start failed
        self._began = 0.0

    def start(self) -> None:
        """Start the process as the leader of a new session, with its output in its log.

        A failure to start (no memory, no space for its log) counts as an exit.
        """
        self._began = time.monotonic()
        self.log.rotate()
        self.refused = ""
        try:
            self.pid = _spawn(self.program)
        except OSError as error:
            self.refused = error.strerror or str(error)
            self.record_end(_NOT_STARTED)
            return
        process = processes.read(self.pid)
        self.started = process.started if process else 0
        self.restarts += self.code is not None
        self.state = State.RUNNING

    def record_end(self, code: int) -> None:
        """Record the exit and, unless the stop was requested, the time of the next start."""
        now = time.monotonic()
        self.pid = self.started = 0
        self.code = code
        self.delay = next_delay(self.delay, now - self._began)
        self.due = now + self.delay
        self.state = State.STOPPED if self.state is State.STOPPING else State.WAITING

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send the process a signal, by default SIGTERM."""
        if self.state is State.WAITING:
            self.state = State.STOPPED
        elif self.pid:
            self.state = State.STOPPING
            processes.kill([self.pid], number)

    @property
    def ending(self) -> str:
        """Return the last exit in words."""
        if self.refused:
            return f"could not be started: {self.refused}"
        if self.code is not None and self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"

    def to_json(self) -> dict[str, Any]:
        """Return the service as `run.json` shows it."""
        return {
            "name": self.name,
            "pid": self.pid or None,
            "restarts": self.restarts,
            "state": str(self.state),
            "started": self.started or None,
            "ending": None if self.code is None else self.ending,
            "delay": self.delay,
        }


def _spawn(program: Program) -> int:
    name, *rest = program.arguments
    path = shutil.which(name, path=program.environment.get("PATH")) or name
    shim = [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), str(program.folder), path, *rest]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable,
        shim,
        program.environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(program.log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
    )


MAX_BYTES = 32 << 20  # per process; `<name>.log.1` is the part before
_SHOWN_AT_ONCE = 1 << 20


class LogFile:
    """The output of one process. The process writes in append mode, so that the file can be truncated meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown = path.stat().st_size if path.exists() else 0

    def rotate(self) -> None:
        """Truncate a file that is too long, and keep one copy. A line written meanwhile may be lost."""
        if not self.path.exists() or self.path.stat().st_size <= MAX_BYTES:
            return
        previous = self.path.with_name(f"{self.path.name}.1")
        try:
            shutil.copyfile(self.path, previous)
        except OSError:  # the disk is full
            previous.unlink(missing_ok=True)
        os.truncate(self.path, 0)

    def fresh(self) -> list[str]:
        """Return the complete lines since the last call, from the start of a file that was truncated."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as handle:
            if self._shown > os.fstat(handle.fileno()).st_size:
                self._shown = 0
            handle.seek(self._shown)
            data = handle.read(_SHOWN_AT_ONCE)
        end = data.rfind(b"\n") + 1 or (len(data) if len(data) == _SHOWN_AT_ONCE else 0)
        self._shown += end
        return data[:end].decode(errors="replace").splitlines()

    def tail(self, lines: int) -> str:
        """Return the last lines."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as handle:
            handle.seek(max(0, self.path.stat().st_size - _SHOWN_AT_ONCE))
            shown = handle.read().decode(errors="replace").splitlines()
        return "\n".join(shown[-lines:] if lines else ())
