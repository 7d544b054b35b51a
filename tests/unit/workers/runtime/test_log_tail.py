"""The last lines of a worker's log are known, whatever it is written to, and all of it is handed on."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from workers.runtime import log_tail
from workers.runtime.log_tail import LINES, _file, _short

ROOT = Path(__file__).parents[4]
SPEAKER = """
import os, sys, threading
from workers.runtime.log_tail import LogTail

log_tail = LogTail()
for n in range(int(sys.argv[1])):
    print(f"line {n}", file=sys.stderr)
sys.stderr.flush()
while log_tail.last()[-1:] != [f"line {int(sys.argv[1]) - 1}"]:
    threading.Event().wait(0.01)  # each stream is kept as it is read
os.system("echo a child >&2; echo on stdout")
log_tail.flush()
for _ in range(500):  # it may be read and not kept yet
    if {"a child", "on stdout"} <= set(last := log_tail.last()):
        break
    threading.Event().wait(0.01)
print(*last, sep="\\n", file=open(sys.argv[2], "w"))
if sys.argv[3] == "killed":
    os.write(2, b"dying words")
    os.kill(os.getpid(), 9)
"""


def speak(
    folder: Path, lines: int, end: str = "", **streams: int
) -> "tuple[subprocess.CompletedProcess[str], list[str]]":
    told = folder / "told"
    command = [sys.executable, "-c", SPEAKER, str(lines), str(told), end]
    ended = subprocess.run(command, cwd=ROOT, text=True, timeout=60, check=False, **streams)
    return ended, told.read_text().splitlines()


def test_last_lines_of_pipe_are_recorded_and_all_lines_forwarded(tmp_path: Path) -> None:
    ended, last = speak(tmp_path, 5000, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert ended.stderr.splitlines() == [*(f"line {n}" for n in range(5000)), "a child"]
    assert ended.stdout == "on stdout\n"
    assert len(last) == LINES
    assert set(last) <= {"a child", "on stdout", *(f"line {n}" for n in range(5000 - LINES, 5000))}
    assert {"a child", "on stdout"} <= set(last)


def test_last_output_of_a_killed_process_is_forwarded(tmp_path: Path) -> None:
    ended, _ = speak(tmp_path, 1, "killed", stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert ended.returncode == -9
    assert ended.stderr.endswith("dying words")


def test_end_of_a_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        _, last = speak(tmp_path, 100, stdout=log.fileno(), stderr=log.fileno())

    assert last == [*(f"line {n}" for n in range(94, 100)), "a child", "on stdout"]


def test_the_end_of_a_file_is_that_of_the_process_before_us() -> None:
    with tempfile.TemporaryFile() as log:
        log.write(b"".join(b"line %d\n" % n for n in range(5000)))
        log.flush()

        assert _file(log.fileno()).endswith(b"line 4999\n")


@pytest.mark.parametrize("many", [1, 3, 50])
def test_a_ring_has_the_last_that_was_written_in_order(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "KEPT", 64)
    ring = os.memfd_create("ring")
    written, total = b"", 0
    for n in range(many):
        data = b"%d;" % n * (n % 40 + 1)
        written += data
        total = log_tail._keep(ring, data, total)

    found = log_tail._ring(ring)
    os.close(ring)

    assert found == written[-64:]


def test_a_long_line_keeps_its_end() -> None:
    line = _short("beginning" + "x" * 5000 + "OutOfMemory")

    assert line.startswith("beginning")
    assert line.endswith("OutOfMemory")
    assert len(line) < 700
