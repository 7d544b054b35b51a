"""Share out the child processes that compute on clients' data: one for each project, and few for all.

    route ─▶ slot of its project ─▶ one of all slots ─▶ child process (`jobs.platform.children`)
                    └── none free within 5 s ──┘─▶ 429 with Retry-After

A request waits in a thread of its project and holds it until its child has ended.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakValueDictionary

from api.shares import ProjectBusy
from jobs.platform.limiters import Limit

#: Each child has a core at low priority and some 100 MB. The limit is 2 GB, or 8 GB for training files. Where memory is
#: short, the kernel ends children first.
SLOTS: Final = 8


class Computations:
    """The slots of this process for children. A project is refused that finds none within `patience` seconds."""

    def __init__(self, patience: float, slots: int = SLOTS) -> None:
        self._patience = patience
        self._slots = Limit(slots)
        self._own: WeakValueDictionary[str, Limit] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextmanager
    def slot(self, project_id: str, *, admitted: bool = False) -> Iterator[None]:
        """Hold the project's slot, and one of all. A request that is `admitted` waits for as long as it takes.

        Raises: ProjectBusy, where one of them is not free in time.
        """
        until = None if admitted else time.monotonic() + self._patience
        with self._lock:  # the slot of a project exists for as long as a request refers to it
            own = self._own.setdefault(project_id, Limit(1))
        with (
            _hold(own, until, "This project has a computation in progress. Send this one again in a moment."),
            _hold(
                self._slots, until, "Computations of other projects take all slots. Send this one again in a moment."
            ),
        ):
            yield


@contextmanager
def _hold(limit: Limit, until: float | None, refusal: str) -> Iterator[None]:
    if not limit.acquire_blocking(timeout=None if until is None else max(0.0, until - time.monotonic())):
        raise ProjectBusy(refusal)
    try:
        yield
    finally:
        limit.release()
