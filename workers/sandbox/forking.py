"""A confined process that forks a fresh process for each input, so that no input sees what another left behind.

    parent: Child ─▶ python -m workers.sandbox ─ separate ─ fork ─▶ template: process 1 of its namespace, `leave_files`
      waits for the template, and ends with it                         │ loads libraries once
                                                                       └─ fork ─▶ an input's process: `confine_input`,
                                                                                  work, answer by a pipe, killed

The template reads neither an input nor an answer: it passes descriptors on, and bytes back. Whatever an input's process
writes may be forged, but for the mark that comes before the input is looked at. The process has its own /tmp, and ends
with its input, whatever it has started. The kernel gives the processor and memory to others first.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from workers.sandbox import resource_limits
from workers.sandbox.confinement import InputLimits, confine_input, leave_files, separate
from workers.sandbox.system_calls import prctl

_PR_SET_PDEATHSIG: Final = 1
_PROBE: Final = InputLimits(memory_bytes=1 << 30, disk_bytes=1 << 20, cpu_seconds=10, threads=64)
_READ: Final = 1 << 16
_CONFINED: Final = b"\1"  # what an input's process writes before it looks at its input
_NICE: Final = 10
_KILLED_FIRST: Final = "1000"  # the highest `oom_score_adj`
_DYING_SECONDS: Final = 1.0  # between closing its pipe and being dead


class Unconfined(Exception):
    """An input's process did not come to be confined, so that nothing was run."""


class Ended(Exception):
    """An input's process ended without an answer. `signal` is what ended it; 0: it ended by itself."""

    def __init__(self, by_signal: int) -> None:
        super().__init__(by_signal)
        self.signal = by_signal


class OutOfTime(Exception):
    """An input's process gave no answer in time."""


def separate_first() -> tuple[str, ...]:
    """Become the template: separate this process, and go on in its first child. Return the missing parts.

    This process itself waits for that child, and ends with it.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    missing = separate()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a new user namespace clears it
    if pid := os.fork():
        for number in (0, 1):
            os.close(number)
        os.waitpid(pid, 0)
        os._exit(0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource_limits.reopen()
    return (*missing, *leave_files())


def run_input(
    work: Callable[[], bytes], limits: InputLimits, *, descriptors: Sequence[int], seconds: float, largest: int
) -> bytes:
    """Do `work` in a fresh process that has only `descriptors`, and return at most `largest` bytes that it wrote.

    The bytes are what `work` returned, or what its input had it write instead. Raises: Unconfined, Ended, OutOfTime.
    """
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        _answer(work, limits, writing, descriptors)
    os.close(writing)
    mark, answer, patience = b"", b"", 0.0
    try:
        written = _read(reading, len(_CONFINED) + largest, time.monotonic() + seconds)
        mark, answer = written[: len(_CONFINED)], written[len(_CONFINED) :]
        patience = 0.0 if answer else _DYING_SECONDS
    finally:
        os.close(reading)
        by_signal = _end(pid, patience)
    if mark != _CONFINED:
        raise Unconfined
    if not answer:
        raise Ended(by_signal)
    return answer


def missing_in_inputs() -> tuple[str, ...]:
    """Return the parts that an input's process lacks here."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writing, msgspec.json.encode(confine_input(_PROBE)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        missing = msgspec.json.decode(answer.read(), type=tuple[str, ...])
    os.waitpid(pid, 0)
    return missing


def _answer(work: Callable[[], bytes], limits: InputLimits, writing: int, descriptors: Sequence[int]) -> None:
    """Confine this process, do the work, write the answer and end; write nothing where a part is missing."""
    try:
        _keep_only({writing, *descriptors})
        if not confine_input(limits):
            os.write(writing, _CONFINED)
            answer = work()
            while answer:
                answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(0)


def _keep_only(descriptors: set[int]) -> None:
    """Close all descriptors but those and the standard ones, which lead nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    kept = sorted({0, 1, 2, resource_limits.statm, *descriptors})
    for before, after in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(before + 1, after)


def _read(descriptor: int, largest: int, deadline: float) -> bytes:
    """Return what is written into a pipe until all have closed it, at most `largest` bytes. Raises: OutOfTime."""
    poll, read = select.poll(), bytearray()
    poll.register(descriptor, select.POLLIN)
    while len(read) < largest:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise OutOfTime
        some = os.read(descriptor, min(largest - len(read), _READ))
        if not some:
            break
        read += some
    return bytes(read)


def _end(pid: int, patience: float = 0.0) -> int:
    """Kill a process, after `patience` seconds to end by itself; return the signal that ended it, 0 for none."""
    death = os.pidfd_open(pid)
    try:
        select.select([death], [], [], patience)
    finally:
        os.close(death)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
