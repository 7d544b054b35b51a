"""Run a module of ours in a child process that has bounded time, processor and memory, and gives way to others.

    given ─stdin─▶ python -m jobs.platform.children ─▶ limits, low priority ─▶ MODULE ─stdout─▶ answer
                        └─ killed with its process group at its end, when its time is up, or when `stopped` returns True

The module is ours; the data are a client's. The limits are soft ones, which a confined process below may exchange for
its own (`workers.sandbox`). The kernel ends the child with the thread that runs it.
"""

import logging
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from jobs.platform import processes

log = logging.getLogger(__name__)

NICENESS: Final = 10
_LOOK: Final = 0.2  # seconds between looks at whether a child should go on
_SHOWN: Final = 2000  # bytes of what a child that failed wrote last
#: In the last line of a child without memory: by Python, the system, the loader of libraries, and C code.
_NO_MEMORY: Final = (
    b"MemoryError",
    b"Cannot allocate memory",
    b"failed to map segment from shared object",
    b"returned NULL without setting an exception",
    b"SyntaxError",  # of a module of ours: the parser had none
)
#: Variables that a child without settings inherits.
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME")
#: Threads and arenas reserve address space by the dozens of MiB, which would count as the data's.
_FIXED: Final = {
    "PYTHONUTF8": "1",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """Seconds from start to end and of a processor, and bytes of address space and of the answer."""

    seconds: float
    cpu_seconds: int
    memory_bytes: int
    answer_bytes: int = 64 << 20


class ChildFailed(Exception):
    """A child that gave no answer. The text says why, as the end of a sentence."""


class ChildStopped(Exception):
    """A child was stopped from outside."""


def run(
    module: str,
    given: Iterable[bytes],
    limits: ChildLimits,
    *,
    settings: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> bytes:
    """Return the answer of a module to what it is given. With `settings` it has the environment of this process.

    Raises: ChildFailed, Stopped, and whatever `given` raises.
    """
    command = [sys.executable, "-P", "-m", __name__, module, msgspec.json.encode(limits).decode(), str(os.getpid())]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(  # noqa: S603 (our own module)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(settings=settings),
            start_new_session=True,
        ) as child,
    ):
        watch = _Watch(child, limits.seconds, stopped)
        try:
            answer = _exchange(child, given, limits.answer_bytes)
        finally:
            watch.end()
        child.wait()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SHOWN))
        written = errors.read()
    if watch.was_stopped:
        raise ChildStopped
    if watch.was_late:
        raise ChildFailed(f"it took more than {limits.seconds:g} seconds")
    if len(answer) > limits.answer_bytes:
        raise ChildFailed(f"its result has more than {limits.answer_bytes >> 20} MiB")
    if child.returncode != 0:
        log.warning("child_failed", extra={"child": module, "stderr": written.decode(errors="replace")})
        last_line = (written.splitlines() or [b""])[-1]
        out_of_memory = any(sign in last_line for sign in _NO_MEMORY)
        raise ChildFailed(_memory_message(limits) if out_of_memory else describe_exit(child.returncode, limits))
    return answer


def describe_exit(returncode: int, limits: ChildLimits) -> str:
    """Return why a child ended with a status, or minus the signal that ended it."""
    if returncode == -signal.SIGXCPU:
        return f"it used more than {limits.cpu_seconds} seconds of a processor"
    if returncode in (-signal.SIGABRT, -signal.SIGSEGV):  # by libraries that get no memory
        return f"its process was ended by {signal.Signals(-returncode).name}; {_memory_message(limits)}, or failed"
    if returncode == -signal.SIGKILL:
        return "its process was ended by SIGKILL, as the kernel does where memory is short"
    if returncode < 0:
        return f"its process was ended by {signal.Signals(-returncode).name}"
    return f"its process ended with the status {returncode}"


def _memory_message(limits: ChildLimits) -> str:
    return f"it needed more than {limits.memory_bytes >> 20} MiB of memory"


def environment(*, settings: bool = False) -> dict[str, str]:
    """Return the variables of a child: where code is and how it is run; with `settings` all those of this process."""
    inherited = dict(os.environ) if settings else {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | _FIXED | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _exchange(child: "subprocess.Popen[bytes]", given: Iterable[bytes], largest: int) -> bytes:
    """Give a child its input, and return its answer, or the beginning of one that is too large."""
    assert child.stdin is not None
    assert child.stdout is not None
    for chunk in given:
        try:
            child.stdin.write(chunk)
        except BrokenPipeError:  # it has ended, and its status says why
            break
    with suppress(BrokenPipeError):
        child.stdin.close()
    answer = child.stdout.read(largest + 1)
    if len(answer) <= largest:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return answer


class _Watch:
    """Kill the process group of a child when its time is up, when it is to stop, and at its end.

    The child is waited for afterwards: until then its number is no other process's.
    """

    def __init__(self, child: "subprocess.Popen[bytes]", seconds: float, stopped: Callable[[], bool]) -> None:
        self.was_late = self.was_stopped = False
        self._child, self._stopped = child, stopped
        self._until = time.monotonic() + seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._done.set()
        self._thread.join()
        self._kill()
        with suppress(BrokenPipeError):
            self._child.stdin.close()  # type: ignore[union-attr]  # it is a pipe

    def _look(self) -> None:
        while not self._done.wait(_LOOK):
            self.was_stopped, self.was_late = self._stopped(), time.monotonic() > self._until
            if self.was_stopped or self.was_late:
                self._kill()
                return

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)


def main(module: str, limits: ChildLimits, parent: int) -> None:
    """Limit this process, and run a module as a program."""
    processes.die_with(parent)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    Path("/proc/self/oom_score_adj").write_text("1000")
    for which, value in ((resource.RLIMIT_AS, limits.memory_bytes), (resource.RLIMIT_CPU, limits.cpu_seconds)):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], msgspec.json.decode(sys.argv[2], type=ChildLimits), int(sys.argv[3]))
