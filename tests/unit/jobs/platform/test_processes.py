"""A process is known by its pid and its start; what is below another is found; what is no more says nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jobs.platform import processes
from tests.support.system import eventually

NO_PID = 2**22 + 1
SCRIPT = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a child with a name that is hard to read, and the pid of its own child."""
    environment = os.environ | {"NIGHTMILL_MARK": "a=b c"}
    command = [sys.executable, "-c", SCRIPT]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    yield child, grandchild
    processes.kill([child.pid, grandchild])  # a test that killed the child has left the other to pid 1
    child.communicate()


def test_a_process_is_itself_until_it_ends(child: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = child
    start = processes.start_time(process.pid)
    assert start
    assert processes.alive(process.pid, start)
    assert not processes.alive(process.pid, start + 1)

    processes.kill([process.pid])
    eventually(lambda: processes.start_time(process.pid) is None, 30, "a zombie counts as ended")
    assert not processes.alive(process.pid, start)


def test_this_process_is_there_and_nothing_is_certain_of_another_host() -> None:
    host, pid, start = processes.me()

    assert not processes.has_ended(host, pid, start)
    assert processes.has_ended(host, pid, start + 1)
    assert not processes.has_ended("another", pid, start + 1)


def test_descendants_of_descendants_are_found(child: tuple[subprocess.Popen[str], int]) -> None:
    process, grandchild = child
    table = processes.table()

    assert processes.add_descendants([process.pid], table) == {process.pid, grandchild}
    assert table[grandchild].parent == process.pid
    assert table[grandchild].session == process.pid


def test_environment_executable_and_usage_of_process_are_read(child: tuple[subprocess.Popen[str], int]) -> None:
    process, grandchild = child

    assert processes.environment(grandchild)["NIGHTMILL_MARK"] == "a=b c"
    assert processes.executable(process.pid) == processes.executable(os.getpid())
    assert (processes.resident_bytes(process.pid) or 0) > 1 << 20
    assert processes.cpu_seconds(process.pid) > 0


def test_a_process_that_is_not_there_says_nothing() -> None:
    found = (processes.read(NO_PID), processes.environment(NO_PID), processes.executable(NO_PID))

    assert (*found, processes.resident_bytes(NO_PID), processes.cpu_seconds(NO_PID)) == (None, {}, "", None, 0.0)
    assert not processes.alive(0, 0)
    processes.kill([NO_PID])
