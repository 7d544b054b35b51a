"""Two processes that watch each other, so that killing either leaves nothing running.

    nightmill up (the guard: waits, passes signals on)          <- the pid that the user sees and may kill -9
      └── the supervisor, in a session of its own               <- kills everything when the guard's pipe closes
            ├── broker, web, dispatcher, … each in a session of its own, SIGKILLed by the kernel with the supervisor
            │     └── grandchildren, whatever session they moved to
            └── orphaned grandchildren come here, since the supervisor is a subreaper

A grandchild gets no signal when its grandparent dies, and cannot be found once its parent is pid 1. So both the guard
and the supervisor are subreapers. If the supervisor dies, its descendants become children of the guard, which kills
them. If the guard dies, the supervisor reads the end of the pipe and kills its descendants.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from cli.up import proc
from jobs.platform import processes

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KILLED = 128


def run_guarded(supervise: Callable[[int], int]) -> int:
    """Run `supervise` in a child process. Return its exit code when nothing of it is left.

    `supervise` receives a descriptor that becomes readable (end of file) when the guard dies. It starts with the
    signals `PASSED_ON` blocked, until it has installed handlers. Call this function while this process has one thread.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.setsid()  # Ctrl-C and a kill of the process group reach the guard only
        proc.become_subreaper()
        return supervise(reading)
    os.close(reading)
    proc.become_subreaper()
    code = _wait(child)
    proc.kill_strays(known=())
    _reap()
    os.close(writing)
    return code


def _wait(child: int) -> int:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        processes.kill([child], number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    _, status = os.waitpid(child, 0)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)  # the rest takes milliseconds
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _KILLED - code


def _reap() -> None:
    """Wait for killed processes, so that they leave the kernel's table; the init of a container may not do it."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
