"""Locks between threads by name, and between processes by file."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary


class Locks:
    """A lock for each name, which exists while a thread holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, name: str, seconds: float) -> Iterator[bool]:
        """Hold the lock of `name`; yield False when it was not free within `seconds`."""
        with self._guard:
            lock = self._locks.get(name) or threading.Lock()
            self._locks[name] = lock
        held = lock.acquire(timeout=seconds)
        try:
            yield held
        finally:
            if held:
                lock.release()


class FileLock:
    """A `flock` on a file, which is made where it is missing, or on a folder.

    The kernel releases the lock when its holder dies. Two objects exclude each other in the same process too. A fork
    shares the lock of its parent: it is held until both have closed it. A `flock` has no timeout: a caller with a
    deadline tries again and again.

    The package filelock has no shared mode and locks no folders.
    """

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        self.path = path
        self._flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
        self._descriptor: int | None = None

    @property
    def is_open(self) -> bool:
        return self._descriptor is not None

    def fileno(self) -> int:
        """Return the descriptor of the lock, opened at the first call."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, self._flags, 0o666)
        return self._descriptor

    def acquire(self) -> None:
        """Wait for the lock as long as it takes."""
        fcntl.flock(self.fileno(), fcntl.LOCK_EX)

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free, or `shared` with others that did so; return whether it was taken."""
        try:
            fcntl.flock(self.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Release the lock, and keep the file open for the next time."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, and so release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def hold(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock; without `wait`, yield False when another holds it. The file is closed afterwards."""
        try:
            if wait:
                self.acquire()
            yield wait or self.try_acquire()
        finally:
            self.close()


@contextmanager
def hold_exclusively(path: Path) -> Iterator[bool]:
    """Hold the lock of a file in a folder that may be missing; yield False when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path).hold(wait=False) as alone:
        yield alone
