"""Locks by name, within this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
