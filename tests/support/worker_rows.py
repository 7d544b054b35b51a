"""Rows of workers, as they register themselves."""

from typing import Any

from jobs.fleet.tables import Worker
from jobs.queues import Queue


def worker_row(name: str = "w", queue: str = Queue.GENERATE, *models: str, **facts: Any) -> Worker:
    """Return a ready worker that serves `models` from `queue`; `facts` replace its other columns."""
    row: dict[str, Any] = {
        "id": name, "pool": "gpu", "host": "h", "pid": 1, "started": 1, "queues": [queue], "models": [*models],
        "slots": 2, "state": "ready", "restarts": 0, "created_at": 1.0, "seen_at": 1.0,
    }  # fmt: skip
    return Worker(**row | facts)
