"""The folders on this machine in which workers train: data, the base or an adapter, checkpoints until they are stored.

<data folder>/run/training/<job>-<epoch>/      locked (flock) by its worker, so that those of dead workers are known
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jobs.platform.locks import FileLock

_LOCK: Final = ".lock"  # held while a folder is made, and while others are removed


@contextmanager
def folder(data_dir: Path, name: str) -> Iterator[Path]:
    """Remove the folders of workers that were killed, and make an empty one; remove it at the end."""
    parent = _parent(data_dir)
    path = parent / name
    lock = FileLock(path, folder=True)
    with FileLock(parent / _LOCK).hold():
        _remove_unlocked_folders(parent)
        path.mkdir()
        lock.acquire()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.close()


def remove_abandoned_folders(data_dir: Path) -> None:
    """Remove the folders of workers that were killed."""
    parent = _parent(data_dir)
    with FileLock(parent / _LOCK).hold():
        _remove_unlocked_folders(parent)


def _parent(data_dir: Path) -> Path:
    parent = data_dir.absolute() / "run" / "training"
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _remove_unlocked_folders(parent: Path) -> None:
    for path in parent.iterdir():
        if path.is_dir():
            with FileLock(path, folder=True).hold(wait=False) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
