"""Processes of this machine: which is which, who is below whom, and what each was started with.

A pid may be reused; a pid together with its start time may not. psutil tells a start time in seconds since 1970, which
moves when somebody corrects the clock, and no sessions: therefore `/proc/<pid>/stat` is read here, and only here. A
session's number is not reused while a member lives.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


@dataclass(frozen=True, slots=True, order=True)
class Process:
    """A process. `started` counts clock ticks since boot."""

    pid: int
    started: int
    parent: int
    session: int
    zombie: bool


def read(pid: int) -> Process | None:
    """Return the process with this pid, or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    if not text:  # it ended meanwhile
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets
    return Process(pid, int(fields[19]), int(fields[1]), int(fields[3]), fields[0] in "ZX")


def table() -> dict[int, Process]:
    """Return all processes by pid."""
    running = map(read, psutil.pids())
    return {process.pid: process for process in running if process is not None}


def add_descendants(roots: Iterable[int], processes: Mapping[int, Process]) -> set[int]:
    """Return the pids `roots` and those of all that is below them in `processes`."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    descendants: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in descendants:
            descendants.add(pid)
            waiting += children.get(pid, [])
    return descendants


def start_time(pid: int) -> int | None:
    """Return when the process began; None when there is none, or only its zombie is left."""
    process = read(pid)
    return None if process is None or process.zombie else process.started


def alive(pid: int, start: int) -> bool:
    """Return whether exactly this process still runs."""
    return start_time(pid) == start


def hostname() -> str:
    return socket.gethostname()


def host_devices() -> str:
    """Return the host and the devices that this process may use: other devices may be sound."""
    devices = next((value for name in _DEVICES if (value := os.environ.get(name))), "")
    return f"{hostname()} (devices {devices})" if devices else hostname()


def me() -> tuple[str, int, int]:
    """Return host, pid and start of this process."""
    return hostname(), os.getpid(), start_time(os.getpid()) or 0


def has_ended(host: str, pid: int, start: int) -> bool:
    """Return whether that process certainly is no more. Of another host nothing is certain."""
    return host == hostname() and not alive(pid, start)


def boot_id() -> str:
    """Return what names this boot: start times of another one mean nothing. psutil has only the time of the boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def environment(pid: int) -> dict[str, str]:
    """Return what the process was started with; empty when it may not be read or was overwritten by a title."""
    try:
        return psutil.Process(pid).environ()
    except psutil.Error:
        return {}


def executable(pid: int) -> str:
    """Return the program that the process runs; empty when that may not be read."""
    try:
        return psutil.Process(pid).exe()
    except psutil.Error:
        return ""


def resident_bytes(pid: int) -> int | None:
    """Return how much memory the process holds; None when there is none."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None


def cpu_seconds(pid: int) -> float:
    """Return the processor time that the process has used; 0 when there is none."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; end now if `parent` is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(os.EX_UNAVAILABLE)


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to each process that is there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
