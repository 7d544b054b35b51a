"""Bytes that clients are sending now."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.errors import ProjectFull


class Arriving:
    """Bytes of bodies that this process receives now, by project."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = Counter[str]()

    @contextmanager
    def hold(self, project_id: str, size: int, free: int) -> Iterator[None]:
        """Count `size` bytes as arriving. Raises ProjectFull when those of others leave less than that of `free`."""
        with self._lock:
            if self._bytes[project_id] + size > free:
                raise ProjectFull("What the project stores and is uploading would be more than it may store.")
            self._bytes[project_id] += size
        try:
            yield
        finally:
            with self._lock:
                self._bytes[project_id] -= size
                self._bytes += Counter()  # forgets projects without any
