"""Record engine processes while they start, and kill those that outlived their worker before the next start.

vLLM runs its engine in child processes. They survive a killed worker, with gigabytes of memory and the GPU. The record
has one line for each process, `pid start-time`: a process that got the same number later has another start time, and
is spared. Without /proc nothing is recorded, and nothing is killed. Python's resource tracker is not recorded: it
cleans up after the others, and then ends by itself.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from jobs.platform import processes

LOOK_SECONDS = 0.2  # that a new process may be unrecorded
GONE_SECONDS = 10.0  # the kernel frees tens of gigabytes in less
TRACKER = "multiprocessing.resource_tracker"


class ProcessIdentity(NamedTuple):
    pid: int
    started: int  # clock ticks after boot


@contextmanager
def record_processes(record: Path) -> Iterator[None]:
    """Record every process that starts below this one inside the block."""
    before = descendants()
    done = threading.Event()

    def look() -> None:
        known: set[ProcessIdentity] = set()
        while True:
            last = done.is_set()
            current = {process for process in descendants() - before if not _is_tracker(process.pid)}
            known = _write_if_new(record, known, current)
            if last:
                return
            done.wait(LOOK_SECONDS)

    watch = threading.Thread(target=look, name="engine-pids", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def kill(record: Path, patience: float = GONE_SECONDS) -> list[ProcessIdentity]:
    """Kill the recorded processes of an earlier engine, and delete the record; return the killed ones."""
    alive_processes = [process for process in read(record) if alive(process)]
    processes.kill(process.pid for process in alive_processes)
    pause = threading.Event()
    for _ in range(int(patience / LOOK_SECONDS)):
        if not any(alive(process) for process in alive_processes):
            break
        pause.wait(LOOK_SECONDS)
    record.unlink(missing_ok=True)
    return alive_processes


def read(record: Path) -> list[ProcessIdentity]:
    if not record.exists():
        return []
    pairs = (line.split() for line in record.read_text().splitlines())
    return [ProcessIdentity(int(pid), int(started)) for pid, started in pairs]


def alive(process: ProcessIdentity) -> bool:
    """Return whether the recorded process still runs, and is not a zombie."""
    return processes.alive(*process)


def descendants() -> set[ProcessIdentity]:
    """Return every process below this one."""
    table = processes.table()
    below = processes.add_descendants([os.getpid()], table) & table.keys() - {os.getpid()}
    return {ProcessIdentity(pid, table[pid].started) for pid in below}


def _write_if_new(record: Path, known: set[ProcessIdentity], current: set[ProcessIdentity]) -> set[ProcessIdentity]:
    if current - known:
        record.parent.mkdir(parents=True, exist_ok=True)
        scratch = record.with_suffix(".new")
        scratch.write_text("".join(f"{pid} {started}\n" for pid, started in sorted(current | known)))
        scratch.replace(record)
    return current | known


def _is_tracker(pid: int) -> bool:
    try:
        return any(TRACKER in word for word in psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return True  # ended meanwhile: nothing to record
