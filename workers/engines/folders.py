"""Folders that are made once, by a process of their own, and appear when they are whole.

What makes them loads torch or transformers, so callers stay light. The folder appears by a rename after everything in
it has been synced: that it exists means that it is complete. A lock file lets one process make it while others wait.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The child's own settings: no hub, no GPU memory for a job of seconds, no progress bars in our logs.
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

NEVER = os.EX_DATAERR


class NotMade(Exception):
    """What the process that was to make it said last, and how it ended: with `NEVER` it will again."""

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


def run(module: str, *words: str) -> None:
    """`python -m module words…`. Raises NotMade."""
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        [sys.executable, "-m", module, *words],
        env=os.environ | QUIET, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotMade(done.stderr.strip()[-2000:], done.returncode)


def make(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill it under the lock: whoever comes second finds the folder and has nothing to do."""
    parent, name = target.parent, target.name
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / f".{name}.lock"):
        if target.is_dir():
            return
        for leftover in parent.glob(f".{name}-*"):  # of one that was killed
            shutil.rmtree(leftover)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        fill(scratch)
        _share(scratch)
        _sync(scratch)
        scratch.rename(target)
        _sync_one(parent)


def _share(folder: Path) -> None:
    """Another user's worker may read it: a temporary folder and its weights are made for their owner only."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
