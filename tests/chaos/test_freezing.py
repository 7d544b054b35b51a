"""A process that is to be frozen while idle is not frozen while it holds a lock that all others wait for."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.chaos.faults import _freeze_idle, lockers
from tests.support.system import eventually

pytestmark = pytest.mark.verify

BEATS = """
import fcntl, sys, threading
gate = open(sys.argv[1], "a")
while True:
    fcntl.flock(gate, fcntl.LOCK_EX)
    threading.Event().wait(0.2)
    fcntl.flock(gate, fcntl.LOCK_UN)
    threading.Event().wait(0.1)
"""


def test_a_lock_is_known_by_its_process(tmp_path: Path) -> None:
    with (tmp_path / "gate").open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        assert os.getpid() in lockers()
    assert os.getpid() not in lockers()


def test_process_is_frozen_between_two_heartbeats(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", BEATS, str(tmp_path / "gate")])
    try:
        eventually(lambda: worker.pid in lockers(), 10, "it sends a heartbeat")
        _freeze_idle([psutil.Process(worker.pid)])

        assert worker.pid not in lockers()
        assert psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
        with (tmp_path / "gate").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        worker.kill()
        worker.wait()
