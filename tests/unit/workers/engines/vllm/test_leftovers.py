"""Engine processes that outlive their worker are found and ended, others never."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.engines.vllm import leftovers
from workers.engines.vllm.leftovers import ProcessIdentity


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "run" / "engine.pids"


@pytest.fixture
def child(record: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child with its own child, while the record is kept."""
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    with leftovers.record_processes(record):
        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
    begun = leftovers.read(record)
    yield child
    record.write_text("".join(f"{pid} {started}\n" for pid, started in begun))
    leftovers.kill(record)
    child.communicate()


def test_children_and_their_children_are_recorded(record: Path, child: subprocess.Popen[bytes]) -> None:
    pids = [process.pid for process in leftovers.read(record)]

    assert child.pid in pids
    assert len(pids) == 2


def test_leftovers_are_killed_and_forgotten(record: Path, child: subprocess.Popen[bytes]) -> None:
    recorded = leftovers.read(record)

    killed = leftovers.kill(record)

    assert killed == recorded
    assert child.wait() == -signal.SIGKILL
    assert not any(leftovers.alive(process) for process in killed)
    assert not record.exists()


def test_a_number_given_to_another_process_is_left_alone(record: Path, child: subprocess.Popen[bytes]) -> None:
    record.write_text(f"{child.pid} 1\n")

    assert leftovers.kill(record) == []
    assert child.poll() is None


def test_nothing_recorded_is_nothing_to_kill(record: Path) -> None:
    assert leftovers.kill(record) == []
    assert not leftovers.alive(ProcessIdentity(2**22 + 1, 0))


def test_unkillable_process_delays_next_startup_only_briefly(
    record: Path, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = leftovers.read(record)
    with monkeypatch.context() as patch:
        patch.setattr(leftovers.processes, "kill", lambda _: None)  # as if it hung in the kernel
        told = leftovers.kill(record, patience=2 * leftovers.LOOK_SECONDS)

    assert told == recorded
    assert child.poll() is None
    assert not record.exists()
