"""What a worker is at that no claim says: the questions of those who wait, removals. It is told with each beat.

So whoever drains a queue, a model, a project or a worker knows when they have ended. See `jobs.fleet.workers`.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UnderWay:
    """Counted by queue, model and project. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counter[tuple[str, str, str]]()

    def begin(self, queue: str, model: str = "", project_id: str = "") -> Callable[[], None]:
        """Something is begun; call what is returned when it has ended."""
        what = (queue, model, project_id)
        with self._lock:
            self._counts[what] += 1

        def end() -> None:
            with self._lock:
                self._counts[what] -= 1
                self._counts += Counter()  # what is at none goes

        return end

    @contextmanager
    def at(self, queue: str) -> Iterator[None]:
        end = self.begin(queue)
        try:
            yield
        finally:
            end()

    def told(self) -> list[list[str | int]]:
        """As it stands in the worker's row: queue, model, project, how many."""
        with self._lock:
            return [[*what, count] for what, count in sorted(self._counts.items())]
