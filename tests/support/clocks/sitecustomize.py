"""Has a Python process tell another time: with this folder on PYTHONPATH, `time.time` is off by what a file says.

NIGHTMILL_TEST_CLOCKS names a folder. Its file `all` (or one named by a pid) holds seconds; without one the time is
right. Only the standard library: this runs before anything else of the process does.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_SECONDS = 0.05


def shifted(folder: Path, wall: Callable[[], float], monotonic: Callable[[], float]) -> Callable[[], float]:
    offset, again = 0.0, 0.0

    def told() -> float:
        nonlocal offset, again
        if monotonic() >= again:
            again = monotonic() + _LOOK_SECONDS
            offset = read(folder)
        return wall() + offset

    return told


def read(folder: Path) -> float:
    """By how many seconds this process is off. A file that is just being written counts as none."""
    for name in (str(os.getpid()), "all"):
        try:
            return float((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return 0.0


if "NIGHTMILL_TEST_CLOCKS" in os.environ:
    time.time = shifted(Path(os.environ["NIGHTMILL_TEST_CLOCKS"]), time.time, time.monotonic)
