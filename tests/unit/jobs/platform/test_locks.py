"""File locks: one holder or several that share, and none left behind by a process that dies."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.platform.locks import FileLock
from tests.support.system import eventually

HOLDS = """
import sys
from pathlib import Path
from jobs.platform.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_file_lock_has_single_holder_until_release(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first = [one.try_acquire(), two.try_acquire()]
    one.release()

    assert (first, two.try_acquire(), one.try_acquire()) == ([True, False], True, False)
    one.close()
    two.close()


def test_several_share_the_lock_and_none_has_it_alone_meanwhile(tmp_path: Path) -> None:
    one, two, three = (FileLock(tmp_path / "lock") for _ in range(3))

    assert [one.try_acquire(shared=True), two.try_acquire(shared=True), three.try_acquire()] == [True, True, False]
    for lock in (one, two):
        lock.close()
    assert three.try_acquire()
    three.close()


def test_waiting_thread_acquires_lock_after_holder_closes_it(tmp_path: Path) -> None:
    lock, got = FileLock(tmp_path / "lock"), threading.Event()

    def wait() -> None:
        with FileLock(tmp_path / "lock").hold() as held:
            if held:
                got.set()

    with lock.hold():
        waiting = threading.Thread(target=wait)
        waiting.start()
        with FileLock(tmp_path / "lock").hold(wait=False) as held:
            assert not held
        assert not got.is_set()
    assert got.wait(30)
    waiting.join()


def test_a_folder_is_locked_and_never_made(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path, folder=True), FileLock(tmp_path, folder=True)
    with one.hold(), two.hold(wait=False) as held:
        assert not held
    with pytest.raises(FileNotFoundError), FileLock(tmp_path / "gone", folder=True).hold():
        pass

    assert [one.is_open, two.is_open] == [False, False]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_releases_its_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        lock = FileLock(tmp_path / "lock")
        assert not lock.try_acquire()
        holder.kill()

        eventually(lock.try_acquire, 30, "the lock of a process that was killed", every=0.01)
        lock.close()
