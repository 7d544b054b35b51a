"""The kernel's table of processes, as far as a supervisor needs it (Linux's /proc).

A pid may be reused; a pid together with its start time may not. A session's number is not reused while a member
lives. Ancestry is exact as long as an ancestor is a subreaper: orphans then move up to it instead of to pid 1.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
_ZOMBIE = "Z"


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the table. `started` counts clock ticks since boot."""

    pid: int
    parent: int
    session: int
    started: int
    zombie: bool


def read(pid: int) -> Process | None:
    """The process with this pid, or None."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    if not text:  # it ended while we looked
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] == _ZOMBIE)


def table() -> dict[int, Process]:
    found = (read(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def alive(pid: int, started: int) -> bool:
    """Whether exactly this process still runs."""
    process = read(pid)
    return process is not None and process.started == started and not process.zombie


def boot_id() -> str:
    """Start times of another boot mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def environment(pid: int) -> bytes:
    """What the process was started with; empty when it may not be read or was overwritten by a title."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def executable(pid: int) -> str:
    try:
        return str((_PROC / str(pid) / "exe").readlink())
    except OSError:
        return ""


def become_subreaper() -> None:
    """Adopt every orphan among the descendants of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def with_descendants(roots: Iterable[int], processes: Mapping[int, Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def strays(known: Collection[int], ended: int = 0) -> set[int]:
    """What must not go on living under this process, as pids.

    `known` are its children in good standing, each leading a session of its own. A stray is a member of the session
    of `ended`; a child that is not known and lives outside the known sessions (it was orphaned); or a descendant
    of these.
    """
    processes = table()
    me = os.getpid()
    roots = {
        process.pid
        for process in processes.values()
        if (ended and process.session == ended)
        or (process.parent == me and process.pid not in known and process.session not in known)
    }
    return {pid for pid in with_descendants(roots, processes) if pid in processes and not processes[pid].zombie}


def kill_strays(known: Collection[int], ended: int = 0, patience: float = 5.0) -> bool:
    """SIGKILL strays until there are none; False when some would not die (a device holds them)."""
    pause = threading.Event()
    for _ in range(int(patience / 0.01)):
        found = strays(known, ended)
        if not found:
            return True
        kill(found)
        pause.wait(0.01)
    return False


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
