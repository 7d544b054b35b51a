"""A module that `jobs.platform.children` runs in tests: it does what its input says, and answers with what it is."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def spin(_: str) -> None:
    while True:
        pass


def sleep(_: str) -> None:
    threading.Event().wait()


def allocate(_: str) -> None:
    bytearray(1 << 40)


def die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_: str) -> None:
    sys.exit(3)


def boast(_: str) -> None:
    sys.stdout.write("x" * (2 << 20))


def start(where: str) -> None:
    """Start another process, write its number down, and sleep."""
    other = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    Path(where).write_text(str(other.pid))
    sleep("")


def report(_: str) -> None:
    facts = {
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
        "session": os.getsid(0) == os.getpid(),
        "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
        "cpu": resource.getrlimit(resource.RLIMIT_CPU)[0],
        "names": sorted(os.environ),
    }
    json.dump(facts, sys.stdout)


WORK: dict[str, Callable[[str], None]] = {
    work.__name__: work for work in (spin, sleep, allocate, die, leave, boast, start, report)
}

if __name__ == "__main__":
    name, _, argument = sys.stdin.read().partition(" ")
    WORK[name](argument)
